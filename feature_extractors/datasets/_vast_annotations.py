"""Datasets of the VAST family: annotation files, media found by id, gaps as they are, presets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.runtime import console
from calmrl_lab.store.convert.media_endings import SOUND_ENDINGS, VIDEO_ENDINGS
from calmrl_lab.store.convert.reading.gzip_files import plain_stem, plain_suffix
from calmrl_lab.store.splits import split_named
from feature_extractors.annotations.annotation import Annotation, Split
from feature_extractors.annotations.read import read_annotations, with_unique_ids
from feature_extractors.datasets._media_index import MediaIndex
from feature_extractors.protocols import File, Item, Manifest, Medium, Text

VIDEO_FOLDERS = ("videos", "video", "videos_train", "videos_test", "videos_validation")
AUDIO_FOLDERS = ("audios", "audio", "audios_train", "audios_test", "audios_validation")
FRAME_FOLDERS = ("frames",)
# How a folder or a file says which split it holds.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_LISTS = (".json", ".jsonl", ".csv", ".tsv")
# The released code looks for the first four of each only, with the sound in .mkv third; the originals of DiDeMo come in others too.
AUDIO_ENDINGS = (".wav", ".mp3", ".mkv", *(ending for ending in SOUND_ENDINGS if ending not in (".wav", ".mp3")))


class AnnotatedDataset:
    """A dataset of the VAST family: annotation files, a folder of videos, a folder of audio files extracted from them.

    `media` is the folder described by `layout()`. `annotations`: another folder for the annotation files. `splits`: only these.
    `captions`: `all`, or `first` as GRAM and PMRL train and test: the first of the list in a row; a clip with a row per caption keeps them all. `require_audio`, `require_video`: drop items without an audio or a
    video file before anything else, as GRAM and PMRL do. `missing`: what to do with items of which no file exists, `fail` (each is recorded as
    failed) or `drop`. `follow_links`: folders outside `media` that links in it may lead to. `validation`: the share of the training groups that becomes the validation split, which no released list
    has, so that models need not be selected on test items. A preset in `preset_options` sets options as the code it names; explicit ones win.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    splits: ClassVar[tuple[Split, ...]]
    modalities: ClassVar[tuple[str, ...]] = ("vision", "audio", "caption", "subtitle")
    extra_texts: ClassVar[Mapping[str, str]] = {}
    licence: ClassVar[str]
    attribution: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, str]]]
    preset_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gram-compat": {"captions": "first", "require_audio": True},
        "pmrl-compat": {"captions": "first", "require_audio": True},
        "calmrl-released": {"captions": "first", "require_audio": True},
        "pmrl-zero-shot": {"captions": "first", "require_audio": True},
    }
    # Names of files in other forms that circulate, by split; a file that says the splits itself may stand under several.
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # What the splits in a file mean where it is not what their names say.
    split_meanings: ClassVar[Mapping[str, str]] = {}
    # How many captions every item has, where a list has one name for two items.
    captions_each: ClassVar[int | None] = None
    split_words: ClassVar[Mapping[str, tuple[str, ...]]] = SPLIT_WORDS
    video_folders: ClassVar[tuple[str, ...]] = VIDEO_FOLDERS
    audio_folders: ClassVar[tuple[str, ...]] = AUDIO_FOLDERS
    # Sub-folder names that the released repositories use for the annotation files.
    annotation_folders: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        media: Path | None = None,
        annotations: Path | str | None = None,
        splits: Sequence[str] | str | None = None,
        captions: str = "all",
        require_audio: bool = False,
        require_video: bool = False,
        missing: str = "fail",
        validation: float = 0.05,
        follow_links: Sequence[str | Path] | str | Path = (),
        **unknown: Any,
    ) -> None:
        known = ("annotations", "splits", "captions", "require_audio", "require_video", "missing", "validation", "follow_links")
        refuse_unknown(self.name, unknown, known)
        self.media = Path(media) if media is not None else None
        self.followed = [follow_links] if isinstance(follow_links, str | Path) else list(follow_links)
        # A dry run also says what there is of a collection without any media.
        self.expects_media = True
        self.annotation_root = Path(annotations) if annotations is not None else None
        self.wanted = splits.split(",") if isinstance(splits, str) else list(splits) if splits is not None else None
        self.captions = captions
        self.required = {"audio": require_audio, "vision": require_video}
        self.missing = missing
        self.validation = validation
        if not isinstance(validation, int | float) or not 0 <= validation < 1:
            raise CalmrlError(
                f"dataset '{self.name}': validation={validation} is no share", hint="from 0 to below 1, e.g. 0.05"
            )
        for value, choices, what in (
            (self.captions, ("all", "first"), "captions"),
            (missing, ("fail", "drop"), "missing"),
            (require_audio, (True, False), "require_audio"),
            (require_video, (True, False), "require_video"),
        ):
            if value not in choices:
                raise CalmrlError(
                    f"dataset '{self.name}': {what}={value} is unknown", hint=f"known: {', '.join(map(str, choices)).lower()}"
                )
        names = [*(split.name for split in self.splits), "validation"]
        for split in self.wanted or []:
            if split not in names:
                raise CalmrlError(f"dataset '{self.name}' has no split '{split}'", hint=f"its splits: {', '.join(names)}")

    @classmethod
    def layout(cls) -> str:
        """How the media folder must look, for messages and documentation."""
        lines = [f"    {'DIR/annotations/' + split.files[0]:<58}{split.name}" for split in cls.splits]
        if "vision" in cls.modalities:
            lines.append(f"    {'DIR/videos/<id>' + '|'.join(VIDEO_ENDINGS[:4]) + '|...':<58}any sub-folders")
        if "audio" in cls.modalities:
            endings = "|".join(AUDIO_ENDINGS[:3])
            note = "optional: without it the sound of the video" if "vision" in cls.modalities else "any sub-folders"
            lines.append(f"    {'DIR/audios/<id>[' + endings + ']':<58}{note}")
        return "\n".join(lines)

    def manifest(self) -> Manifest:
        """Items of all splits found, in the order of the files; media that are not there keep the path where they belong."""
        annotated = self._annotations()
        index = self._index()
        items = [item for annotation in annotated if (item := self._item(annotation, index)) is not None]
        if not items:
            lacking = [m for m, asked in self.required.items() if asked and m in self.modalities and not index.folders(m)]
            if lacking:
                what, folder = ("sound", AUDIO_FOLDERS[0]) if lacking[0] == "audio" else ("video", VIDEO_FOLDERS[0])
                raise CalmrlError(
                    f"dataset '{self.name}': only items with a {what} file are asked for, and there is no folder '{folder}' in '{self.media}'",
                    hint=f"extract the {what} into it, as the preset's released code needs it, or keep all items: --set require_{lacking[0]}=false",
                )
            raise CalmrlError(
                f"dataset '{self.name}': none of the {len(annotated)} annotated items has a file in '{self.media}'",
                hint=f"the media folder must look like this:\n{self.layout()}",
            )
        policy = [f"captions {self.captions}"] * (self.captions != "all")
        needed = [f"{article} file" for m, article in (("audio", "an audio"), ("vision", "a video")) if self.required[m]]
        policy += [f"items with {' and '.join(needed)}"] * bool(needed) + ["items with a file"] * (self.missing == "drop")
        name = f"{self.name} ({'; '.join(policy)})" if policy else self.name
        return Manifest(name, self.licence, self.attribution, self.stored_modalities(), tuple(items))

    def stored_modalities(self) -> tuple[str, ...]:
        """The modalities of the manifest; a text modality that a dataset adds comes last."""
        return (*self.modalities, *self.extra_texts)

    def read(self, path: Path, split: Split) -> list[Annotation]:
        """The items of one split in an annotation file."""
        return read_annotations(path, split, self.extra_texts, self.captions_each, self.split_meanings)

    def arranged(self, annotated: list[Annotation], files: Mapping[str, Path]) -> list[Annotation]:
        """The items of all splits, as the dataset arranges them; `files`: split -> the file it came from."""
        return annotated

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        """Further names a file of item `name` may have, without ending; the id itself always comes first."""
        return ()

    def group(self, name: str) -> str | None:
        """Items of one group are never split apart: by default every item is its own."""
        return None

    def _annotations(self) -> list[Annotation]:
        if self.media is None:
            raise CalmrlError(
                f"dataset '{self.name}' ({self.title}) needs a media folder",
                hint=f"--media DIR, where DIR looks like this:\n{self.layout()}",
            )
        if not self.media.is_dir():
            raise CalmrlError(
                f"the media folder '{self.media}' does not exist", hint=f"it must look like this:\n{self.layout()}"
            )
        roots = self._roots(self.media)
        annotated: list[Annotation] = []
        files: dict[str, Path] = {}
        looked: list[Path] = []
        for split in self._all_splits():
            if not self._wants(split.name) and not (split.name == "train" and self._wants("validation")):
                continue
            candidates = [root / name for name in split.files for root in roots]
            there = (p for name in candidates for p in (name, name.with_name(f"{name.name}.gz")) if p.is_file())
            path = next(there, None) or self._named_like(split, roots)
            if path is None:
                looked += candidates
                if self.wanted is not None and split in self.splits:
                    raise self._nothing_found(looked)
                continue
            found = self.read(path, split)
            if found:
                files[split.name] = path
                annotated += found
        if not annotated:
            raise self._nothing_found(looked)
        annotated = self.arranged(annotated, files)
        self._has_validation = any(item.split == "validation" for item in annotated)
        self._say_what_is_missing(annotated, roots)
        return with_unique_ids(self.name, annotated)

    def _all_splits(self) -> list[Split]:
        """Every split with the names of its files: those released with VAST first, then the other forms."""
        own = {split.name: split.files for split in self.splits}
        names = [*own, *(name for name in self.other_files if name not in own)]
        return [Split(name, (*own.get(name, ()), *self.other_files.get(name, ()))) for name in names]

    def _named_like(self, split: Split, roots: Sequence[Path]) -> Path | None:
        """The only list in the folder of the annotations whose name says the split; CalmrlError if there are several."""
        known = {name for other in self._all_splits() for name in other.files}
        found = [
            path
            for root in roots
            if root != self.media and root.is_dir()
            for path in sorted(root.iterdir())
            if plain_suffix(path) in _LISTS and path.name not in known and _says_split(plain_stem(path), split.name)
        ]
        if len(found) > 1:
            raise CalmrlError(
                f"dataset '{self.name}': {len(found)} lists may be that of {split.name}: {', '.join(path.name for path in found[:4])}",
                hint=f"rename the right one to {split.files[0]}, or leave only that one in the folder",
            )
        if found:
            console.note(f"{self.name}: '{found[0].name}' is taken as the list of {split.name}")
        return found[0] if found else None

    def _say_what_is_missing(self, annotated: Sequence[Annotation], roots: Sequence[Path]) -> None:
        there = {item.split for item in annotated}
        for split in self.splits:
            if split.name not in there and self._wants(split.name):
                console.note(
                    f"{self.name}: no list of {split.name} found (looked for {', '.join(split.files)} in '{roots[0]}'), so it has no such items"
                )

    def _roots(self, media: Path) -> list[Path]:
        if self.annotation_root is not None:
            return [self.annotation_root, *(self.annotation_root / folder for folder in self.annotation_folders)]
        base = media / "annotations"
        return [base, media, *(base / folder for folder in self.annotation_folders)]

    def _nothing_found(self, looked: Sequence[Path]) -> CalmrlError:
        files = "\n".join(f"    {path}" for path in looked)
        return CalmrlError(
            f"dataset '{self.name}': no annotation file in '{self.annotation_root or self.media}'; looked for\n{files}",
            hint=f"the media folder must look like this:\n{self.layout()}",
        )

    def _index(self) -> MediaIndex:
        assert self.media is not None
        index = MediaIndex(
            self.media,
            {
                "vision": (self.video_folders, VIDEO_ENDINGS),
                "audio": (self.audio_folders, AUDIO_ENDINGS),
            },
            FRAME_FOLDERS,
            self.followed,
        )
        needed = {"vision", "audio"} & set(self.modalities)
        if self.expects_media and needed and not any(index.folders(modality) for modality in needed):
            looked = ", ".join(str(self.media / f) for f in (*self.video_folders[:1], *self.audio_folders[:1]))
            raise CalmrlError(
                f"dataset '{self.name}': no media in '{self.media}' (looked for the folders {looked})",
                hint=f"the media folder must look like this:\n{self.layout()}",
            )
        return index

    def _item(self, annotation: Annotation, index: MediaIndex) -> Item | None:
        media: dict[str, Sequence[Medium]] = {}
        found = {m: self._find(index, annotation, m) for m in ("vision", "audio") if m in self.modalities}
        if any(path is None and self.required[modality] for modality, path in found.items()):
            return None
        if self.missing == "drop" and found and all(path is None for path in found.values()):
            return None
        for modality, path in found.items():
            if path is not None:
                media[modality] = (File(path),)
                continue
            video = found.get("vision")
            if modality == "audio" and video is not None:
                # No extracted file: the video's own sound track decides whether there is sound. Frames alone have none.
                if video.is_file():
                    media[modality] = (File(video),)
                continue
            media[modality] = (File(index.expected(modality, self._place(annotation))),)
        captions = annotation.captions if self.captions == "all" else annotation.first_captions or annotation.captions[:1]
        media["caption"] = tuple(Text(caption) for caption in captions)
        if "subtitle" in self.modalities and annotation.subtitle.strip():
            media["subtitle"] = (Text(annotation.subtitle),)
        for further, texts in annotation.extra.items():
            media[further] = tuple(Text(text) for text in (texts if self.captions == "all" else texts[:1]))
        group = self.group(annotation.media_name)
        split = annotation.split
        if split == "train" and not self._has_validation and held_out(f"{self.name}/{group or annotation.id}", self.validation):
            split = "validation"
        return Item(annotation.id, split, media, group, annotation.labels) if self._wants(split) else None

    def _wants(self, split: str) -> bool:
        return self.wanted is None or split in self.wanted

    def _find(self, index: MediaIndex, annotation: Annotation, modality: str) -> Path | None:
        names = dict.fromkeys((annotation.media_name, annotation.raw_id, *self.aliases(annotation.media_name, modality)))
        words = self._folder_words(annotation)
        only = not annotation.alone
        return next((path for name in names if (path := index.find(modality, name, words, only)) is not None), None)

    def _folder_words(self, annotation: Annotation) -> tuple[str, ...]:
        """What a folder with the item's media may be called: its split, or, for a second item of one name, the next split."""
        words = self.split_words.get(annotation.split, ())
        return self.split_words.get("validation", ()) if annotation.occurrence else words

    def _place(self, annotation: Annotation) -> str:
        """Where the file of an item belongs below its folder: in one of its split if another item has the same name."""
        return annotation.raw_id if annotation.alone else f"{self._folder_words(annotation)[0]}/{annotation.raw_id}"


def _says_split(stem: str, split: str) -> bool:
    """Whether the name of a file says that it is the list of a split: val_1, test_data, results_10M_val."""
    parts = [part for part in re.split(r"[^a-z]+", stem.lower()) if part]
    return any(part in SPLIT_WORDS[split] or split_named(part) == split for part in parts)


def held_out(group: str, share: float) -> bool:
    """Whether a group belongs to the held-out `share`: by the hash of its name, so that more or fewer items elsewhere change nothing."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2.0**64


def refuse_unknown(dataset: str, given: Mapping[str, Any], options: Sequence[str]) -> None:
    """CalmrlError for an option that a dataset does not have."""
    for option in sorted(given):
        known(option, options, f"dataset '{dataset}' has no option")


def presets(
    vision: Mapping[str, str] | str, audio: str, caption: str = "vast/bert-caption", zero_shot: str | None = None, **more: str
) -> dict[str, dict[str, str]]:
    """The presets of a dataset: VAST as its paper, GRAM, PMRL and CalMRL run it, and `open` for people without its weights.

    `vision` maps `vast` and `gram` to an encoder (one name: the same for both); GRAM's `audio` is the `-mono` variant; `more` holds
    the encoders of further text modalities. `zero_shot`: the vision encoder of PMRL's released zero-shot evaluation, whose captions have
    40 tokens on every set; None where it has none. CalMRL's released code tests with the same encoders.
    """
    given = {"vast": vision, "gram": vision} if isinstance(vision, str) else vision
    base = {"vision": given["vast"], "audio": audio, "caption": caption, **more}
    return {
        "vast-paper": base,
        "gram-compat": {**base, "vision": given["gram"], "audio": f"{audio}-mono"},
        "pmrl-compat": dict(base),
        **({"pmrl-zero-shot": {**base, "vision": zero_shot, "caption": "vast/bert-caption"}} if zero_shot else {}),
        "calmrl-released": {**base, "vision": zero_shot or given["vast"], "caption": "vast/bert-caption"},
        "open": {"vision": "clip/image", "audio": "clap/audio", **dict.fromkeys(("caption", *more), "sentence/text")},
    }


def with_video(*presets: str) -> dict[str, dict[str, Any]]:
    """`preset_options` for a dataset of which some systems also leave out the items without a video file."""
    common = AnnotatedDataset.preset_options
    return {name: {**options, **({"require_video": True} if name in presets else {})} for name, options in common.items()}


def without(table: Mapping[str, Mapping[str, str]], *modalities: str) -> dict[str, dict[str, str]]:
    """The presets of a dataset that lacks some modalities."""
    return {name: {m: encoder for m, encoder in preset.items() if m not in modalities} for name, preset in table.items()}
