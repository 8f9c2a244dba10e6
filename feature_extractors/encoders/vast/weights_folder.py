"""What lies in a folder of VAST's weights: the one checkpoint meant, its vocabulary, its sizes, its settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.networks.architecture import FILE, Architecture, read_architecture

LAYOUT = (
    "expected in the weights folder: log/hps.json and ckpt/model_step_N.pt as VAST, GRAM and PMRL release them (or one .pt, .bin or "
    ".safetensors file), and bert/bert-base-uncased/vocab.txt"
)
_TENSOR_FILES = (".safetensors", ".pt", ".pth", ".bin")
# Folders with parts that a system is built from, or with no weights at all.
_OTHER_FOLDERS = {
    "beats", "bert", "bert-base-uncased", "clip", "optimizer", "pretrained_weights", "log", "datasets", "data", "annotations", "videos", "audios", "frames",
    "stores", "runs", "reports", "config", "scripts", "imagebind", "languagebind",
}  # fmt: skip
# Files with parts that a system is built from, or with what training needs besides.
_OTHER_FILES = re.compile(
    r"(BEATs_|EVA\d|EVA_|bert|imagebind|languagebind|optimizer|scheduler|rng_state|training_args|scaler)", re.IGNORECASE
)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}$")
# How far below the given folder a run folder is looked for, and how far above it a folder pretrained_weights/.
_DEPTH = 4
_BERT_FOLDERS = ("bert/bert-base-uncased", "bert-base-uncased", "bert", ".")


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint in a weights folder (or `folder` itself if it is a file).

    A run folder holds `ckpt/model_step_N.pt` (the highest N counts), else `ckpt/best_*.pt` or `checkpoint-N/pytorch_model*.bin`; a checkpoint may also be a
    file of its own. Both are looked for some folders deep; parts that systems are built from (BEATs, EVA-CLIP, BERT) are none. Raises
    CalmrlError if there is none, or several: two of them are two systems, and which one is meant is for the user to say.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise CalmrlError(f"the weights folder '{folder}' does not exist", hint=LAYOUT)
    found = list(_checkpoints(folder, _DEPTH))
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:4]) + (", ..." if len(found) > 4 else "")
        raise CalmrlError(
            f"'{folder}' holds several checkpoints ({names}); one is expected",
            hint="name one of them: --weights PATH, the file itself or its own folder",
        )
    if not found:
        raise CalmrlError(f"no VAST checkpoint in '{folder}'", hint=LAYOUT)
    return found[0]


def _checkpoints(place: Path, depth: int) -> Iterator[Path]:
    """One file for every system below a folder; of a sharded one the first shard."""
    yield from _of_run(place)
    yield from _whole_files(place)
    if depth:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            name = entry.name
            if entry.is_dir() and not name.startswith(".") and name.lower() not in _OTHER_FOLDERS and not _is_part(name):
                yield from _checkpoints(Path(entry.path), depth - 1)


def _is_part(name: str) -> bool:
    """Folders of a run: what they hold is found from the run."""
    return name == "ckpt" or name.startswith("checkpoint-")


def _of_run(place: Path) -> list[Path]:
    """What stands for a training run: its last step, else its best ones."""
    inside = _whole_files(place / "ckpt")
    for beginning in ("model_step_", "best_", ""):
        if found := [path for path in inside if path.name.startswith(beginning)]:
            return [max(found, key=_step)] if beginning == "model_step_" else found
    steps = sorted((path for path in place.glob("checkpoint-*") if path.is_dir()), key=_step)
    return next((files[:1] for step in reversed(steps) if (files := _whole_files(step))), [])


def _whole_files(place: Path) -> list[Path]:
    """Files of tensors directly in a folder, one for all shards of one, without parts that systems are built from."""
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.suffix in _TENSOR_FILES and path.is_file() and not _OTHER_FILES.match(path.name):
            shard = _SHARD.match(path.stem)
            found.setdefault(shard[1] + path.suffix if shard else path.name, path)
    return list(found.values())


def shards_of(path: Path) -> list[Path]:
    """All files of a checkpoint of which `path` is one."""
    shard = _SHARD.match(path.stem)
    return sorted(path.parent.glob(f"{shard[1]}-*-of-*{path.suffix}")) if shard else [path]


def _step(path: Path) -> tuple[int, str]:
    """Steps in numeric order: step 10000 comes after step 9999."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, str(path))


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: the folder above ckpt/ or checkpoint-N/."""
    return checkpoint.parent.parent if _is_part(checkpoint.parent.name) else checkpoint.parent


def find_vocabulary(weights: Path) -> Path:
    """`vocab.txt` (or `tokenizer.json`) of bert-base-uncased that belongs to some weights; CalmrlError naming the places looked at."""
    names = [f"{folder}/{name}" for folder in _BERT_FOLDERS for name in ("vocab.txt", "tokenizer.json")]
    if (found := find_beside(weights, names)) is not None:
        return found
    roots = " or ".join(f"'{root}'" for root in roots_of(weights))
    looked = ", ".join(f"{folder}/vocab.txt" for folder in _BERT_FOLDERS[:3])
    raise CalmrlError(
        f"no vocabulary of bert-base-uncased in {roots} (looked for {looked}, vocab.txt, and tokenizer.json there)", hint=LAYOUT
    )


def roots_of(weights: Path) -> list[Path]:
    """The folders that hold what belongs to a checkpoint (architecture.json, bert/, beats/): its run, then the weights folder."""
    top = weights.parent if weights.is_file() else weights
    try:
        return list(dict.fromkeys([run_folder(find_checkpoint(weights)), top]))
    except CalmrlError:
        return [top]


def find_beside(weights: Path, names: Sequence[str]) -> Path | None:
    """The first file of one of these names in `roots_of(weights)`, or in a folder pretrained_weights/ there or beside one of the folders above."""
    for root in roots_of(weights):
        above = [root, *root.absolute().parents[:_DEPTH]]
        for place in (root, *(folder / "pretrained_weights" for folder in above)):
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def architecture_file(weights: Path) -> Path | None:
    """The architecture.json that says these weights are of other sizes than the published ones, if there is one."""
    return next((root / FILE for root in roots_of(weights) if (root / FILE).is_file()), None)


def sizes_of(weights: Path) -> Architecture:
    """The published sizes, or those of the architecture.json beside the checkpoint."""
    return read_architecture(architecture_file(weights))


def settings_file(root: Path) -> Path:
    """Where the settings of a run are: log/hps.json as released, or hps.json beside the checkpoint."""
    return next((path for path in (root / "log" / "hps.json", root / "hps.json") if path.is_file()), root / "log" / "hps.json")


def read_run_settings(root: Path) -> dict[str, Any]:
    """`model_cfg` of the run's hps.json, or nothing if there is none. Raises CalmrlError for a file that cannot be read."""
    path = settings_file(root)
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        if not isinstance(settings, dict):
            raise TypeError(f"model_cfg is {type(settings).__name__}")
        return settings
    except (ValueError, KeyError, TypeError) as error:
        raise CalmrlError(
            f"the run settings '{path}' cannot be read: {error}", hint="restore the released file, or remove it"
        ) from None


def contradictions(settings: Mapping[str, Any], architecture: Architecture) -> list[str]:
    """Where a run's settings differ from what is built here, as clauses; settings that are not there contradict nothing.

    The number of mel bins and the length of a slice leave no trace in the shapes of the tensors, so only these settings tell.
    """
    sizes = architecture.audio
    built = {
        "vision_encoder_type": "evaclip01_giant",
        "audio_encoder_type": "beats",
        "audio_melbins": sizes.mel_bins,
        "audio_target_length": sizes.slice_frames,
        "vision_resolution": architecture.vision.resolution,
    }
    return [
        f"{key} is {settings[key]}, here {value}" for key, value in built.items() if key in settings and settings[key] != value
    ]
