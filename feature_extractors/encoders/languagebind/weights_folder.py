"""What lies in a folder of LanguageBind's weights: one folder per modality, each with config.json and a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError

LAYOUT = (
    "expected in the weights folder: the released folders, for example LanguageBind_Video_FT, LanguageBind_Audio_FT and LanguageBind_Image, each with "
    "config.json, pytorch_model.bin (or model.safetensors), vocab.json and merges.txt"
)
# What config.json calls the model of a modality; the text tower is the same in all of them.
MODEL_TYPES = {"image": "LanguageBindImage", "video": "LanguageBindVideo", "audio": "LanguageBindAudio"}
_TEXT_FROM = ("image", "video", "audio")
_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_model(folder: Path, part: str) -> Path:
    """The folder of the model of `image`, `video` or `audio` in a weights folder; for `text`, of the first of these that is there.

    Raises CalmrlError if there is none, or several: which one is meant is for the user to say.
    """
    if not folder.is_dir():
        raise CalmrlError(f"the weights folder '{folder}' does not exist", hint=LAYOUT)
    if part == "text":
        for other in _TEXT_FROM:
            if found := models_of(folder, other):
                return found[0]
        raise CalmrlError(f"no LanguageBind model in '{folder}'", hint=LAYOUT)
    found = models_of(folder, part)
    if len(found) > 1:
        raise CalmrlError(
            f"'{folder}' holds several LanguageBind models of {part} ({', '.join(sorted(place.name for place in found))}); one is expected",
            hint="keep one of them there, or pass --weights the folder of one of them",
        )
    if not found:
        raise CalmrlError(f"no LanguageBind model of {part} in '{folder}'", hint=LAYOUT)
    return found[0]


def models_of(folder: Path, part: str) -> list[Path]:
    """The folders of all models of a modality: the folder itself, those in it, and those in its folder languagebind/."""
    return [place for place in _candidates(folder) if model_type(place) == MODEL_TYPES[part]]


def model_type(folder: Path) -> str | None:
    """What config.json of a folder calls its model; None without one that can be read."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) else None


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json of a model. Raises CalmrlError if it is damaged or lacks a part."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            "projection_dim": content["projection_dim"],
            **{part: content[part] for part in ("text_config", "vision_config")},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalmrlError(
            f"'{path}' is not LanguageBind's configuration: {type(error).__name__} {error}", hint="download it again"
        ) from None


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint of a model's folder; of a sharded one the first shard. Raises CalmrlError if there is none."""
    for name in _FILES[:2]:
        if (folder / name).is_file():
            return folder / name
    shards = sorted([*folder.glob("model-*-of-*.safetensors"), *folder.glob("pytorch_model-*-of-*.bin")])
    if not shards:
        raise CalmrlError(f"'{folder}' holds config.json and no checkpoint", hint=LAYOUT)
    return shards[0]


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder
    for root in (folder, folder / "languagebind", folder / "LanguageBind"):
        if root.is_dir():
            yield from sorted(place for place in root.iterdir() if place.is_dir())
