"""A request checked before anything runs: which encoders for which modalities, which items, and what the result depends on."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.store import ModalitySpec, Reason, write_store
from feature_extractors.encoder_setup import EncoderFacts
from feature_extractors.encoders import encoders
from feature_extractors.protocols import File, Image, Item, Manifest, Medium, OrSilence, Text, Vector, Waveform
from feature_extractors.workers.encode_block import media_of


def choose_encoders(dataset: str, presets: Mapping[str, Mapping[str, str]], preset: str | None) -> dict[str, str]:
    """Modality -> encoder name, from a preset of the dataset (default: its first) or `vision=NAME,caption=NAME`."""
    named = f"--encoders {'PRESET or ' if presets else ''}vision=NAME,caption=NAME (calmrl-lab list encoders)"
    if preset is None:
        if not presets:
            raise CalmrlError(f"dataset '{dataset}' has no encoders of its own", hint=named)
        return dict(next(iter(presets.values())))
    if "=" not in preset:
        known(
            preset,
            list(presets),
            f"dataset '{dataset}' has no encoder preset",
            f"presets: {', '.join(presets) or 'none'}; {named}",
        )
        return dict(presets[preset])
    chosen: dict[str, str] = {}
    for pair in preset.split(","):
        modality, equals, name = (word.strip() for word in pair.partition("="))
        if not (modality and equals and name):
            raise CalmrlError(f"--encoders: '{pair}' is not MODALITY=ENCODER", hint=named)
        if modality in chosen:
            raise CalmrlError(f"--encoders names the modality '{modality}' twice", hint=named)
        encoders.get(name)
        chosen[modality] = name
    return chosen


def preset_meant(presets: Mapping[str, Mapping[str, str]], preset: str | None) -> str | None:
    """The preset of this name, or the one of which it is the first word (`vast` of `vast-paper`; of several, `-compat`); anything else as given."""
    beginning = [name for name in presets if name.startswith(f"{preset}-")]
    if preset in presets or not beginning:
        return preset
    return beginning[0] if len(beginning) == 1 else next((name for name in beginning if name == f"{preset}-compat"), preset)


def checked_manifest(manifest: Manifest, chosen: Mapping[str, str]) -> Manifest:
    """The manifest with the chosen modalities only; CalmrlError for what would end in an error after hours of work.

    Items that have no medium of any modality are a mistake in the manifest; those that only lack the chosen modalities are not.
    """
    for name in chosen:
        known(name, list(manifest.modalities), f"dataset '{manifest.dataset}' has no modality")
    if not manifest.items:
        raise CalmrlError(f"dataset '{manifest.dataset}' has no items", hint="look at its annotation files and at --media")
    twice = [name for name, count in Counter(item.id for item in manifest.items).items() if count > 1]
    if twice:
        raise CalmrlError(
            f"dataset '{manifest.dataset}': the id {twice[0]!r} stands for several items",
            hint="give every item an id of its own",
        )
    bare = [item.id for item in manifest.items if not any(media_of([item], m) for m in manifest.modalities)]
    if bare:
        raise CalmrlError(
            f"dataset '{manifest.dataset}': {len(bare)} of {len(manifest.items)} items have no modality at all, the first is {bare[0]!r}",
            hint="leave such items out of the dataset",
        )
    kept = tuple(m for m in manifest.modalities if m in chosen)
    for modality in kept:
        lengths = {
            medium.values.shape[-1]
            for item in manifest.items
            for medium in item.media.get(modality, ())
            if isinstance(medium, Vector)
        }
        if len(lengths) > 1:
            raise CalmrlError(
                f"dataset '{manifest.dataset}': the vectors of '{modality}' have {len(lengths)} lengths: {', '.join(map(str, sorted(lengths)))}",
                hint="give all vectors of a modality one length",
            )
    if not any(media_of(manifest.items, m) for m in kept):
        raise CalmrlError(f"dataset '{manifest.dataset}': no item has {' or '.join(kept)}", hint="choose other modalities")
    return replace(manifest, modalities=kept)


def gaps_as_silence(manifest: Manifest, choice: Mapping[str, str], kinds: Mapping[str, Any]) -> Manifest:
    """The manifest with silence in place of missing sounds and empty texts in place of missing subtitles, as released evaluations have them.

    Raises CalmrlError if no chosen encoder is of a system that does so.
    """
    able = [m for m in manifest.modalities if m != "caption" and hasattr(kinds[choice[m]], "stand_in")]
    if not able:
        raise CalmrlError(
            f"dataset '{manifest.dataset}': none of the encoders {', '.join(sorted(set(choice.values())))} stands in for gaps",
            hint="--gaps-as-silence is for VAST's encoders of sound and subtitles (vast-paper, gram-compat, pmrl-compat, pmrl-zero-shot)",
        )
    items = []
    for item in manifest.items:
        stood_in: dict[str, Sequence[Medium]] = {}
        for modality in able:
            given = tuple(OrSilence(medium) for medium in item.media.get(modality, ()) if isinstance(medium, Text | File))
            stood_in[modality] = given or (OrSilence(None),)
        items.append(replace(item, media={**item.media, **stood_in}))
    return replace(manifest, dataset=f"{manifest.dataset} (gaps as silence)", items=tuple(items))


def smoke_check(manifest: Manifest, facts: Mapping[str, EncoderFacts]) -> None:
    """Write the store without its features into a temporary folder: whatever name or id it would refuse is refused now."""
    specs = [
        ModalitySpec(m, facts[m].name, facts[m].fingerprint, max(facts[m].dimension, 1), facts[m].dtype or "float16")
        for m in manifest.modalities
    ]
    n = len(manifest.items)
    with tempfile.TemporaryDirectory(prefix="calmrl-") as folder:
        write_store(
            Path(folder) / "rehearsal.zarr",
            modalities=specs,
            features={spec.name: np.zeros((0, spec.dimension), np.float32) for spec in specs},
            offsets={spec.name: np.zeros(n + 1, np.int64) for spec in specs},
            reason=np.full((n, len(specs)), Reason.NOT_EXTRACTED, np.uint8),
            heads=heads_of(facts),
            **frame_of(manifest, np.arange(n)),
        )


def frame_of(manifest: Manifest, kept: np.ndarray) -> dict[str, Any]:
    """What a store says about the items with the indices `kept`, as arguments of `write_store`."""
    items = [manifest.items[i] for i in kept]
    labels = sorted({name for item in manifest.items for name in item.labels})
    return {
        "dataset": manifest.dataset,
        "ids": [item.id for item in items],
        "split": [item.split for item in items],
        "group": [item.group or item.id for item in items],
        "labels": {name: [item.labels.get(name, "") for item in items] for name in labels},
        "licence": manifest.licence,
        "attribution": manifest.attribution,
    }


def heads_of(facts: Mapping[str, EncoderFacts]) -> dict[str, np.ndarray]:
    """The projection weights of all encoders."""
    return {name: array for fact in facts.values() for name, array in fact.heads.items()}


def item_digest(item: Item, modalities: tuple[str, ...], media: Path | None) -> str:
    """sha256 over everything a manifest says about an item; files by their place in the media folder, wherever that lies."""
    digest = hashlib.sha256()
    for value in (item.id, item.split, item.group, sorted(item.labels.items())):
        digest.update(_plain(value))
    for modality in modalities:
        digest.update(_plain(modality))
        for medium in item.media.get(modality, ()):
            digest.update(_content(medium, media))
    return digest.hexdigest()


def _content(medium: Medium, media: Path | None) -> bytes:
    if isinstance(medium, OrSilence):
        return _plain("or silence") + (_content(medium.medium, media) if medium.medium is not None else b"")
    if isinstance(medium, Vector):
        return _plain(("vector", medium.values.dtype.str, medium.values.shape)) + medium.values.tobytes()
    if isinstance(medium, Image):
        return _plain(("image", medium.pixels.shape)) + medium.pixels.tobytes()
    if isinstance(medium, Waveform):
        return _plain(("waveform", medium.rate, medium.samples.shape)) + medium.samples.tobytes()
    if isinstance(medium, File):
        inside = media is not None and medium.path.is_relative_to(media)
        return _plain(("file", medium.path.relative_to(media).as_posix() if inside and media else str(medium.path)))
    return _plain(medium)


def _plain(value: object) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass") + b"\n"
