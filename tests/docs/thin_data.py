"""What pages about VAST take for granted, made small: folders of clips with annotations, and a release of two thin layers with random weights."""

from __future__ import annotations

import json
from pathlib import Path

from extraction.zoo import clip
from vast.conftest import random_tensors, released_extras, save_weights

_WHO, _WHAT = (
    ("a man", "a woman", "the dog", "the cat", "a person", "the car"),
    ("is playing", "sings", "runs", "is singing", "is running"),
)
_TRAIN, _TEST = 30, 8


def write_thin_data(folder: Path) -> None:
    """weights/vast, data/msrvtt, data/vast150k and data/audiocaps below `folder`."""
    save_weights(folder / "weights" / "vast", released_extras(random_tensors()))
    short = clip(folder / "short.mp4", frames=12, sound="aac")
    sound = clip(folder / "short.wav", codec=None, frames=12, sound="pcm_s16le")
    train = [_row(f"video{number}", number) for number in range(_TRAIN)]
    test = [_row(f"video{7000 + number}", number) for number in range(_TEST)]
    _dataset(folder / "data" / "msrvtt", {"descs_ret_train.json": train, "descs_ret_test.json": test}, short)
    large = [
        {"clip_id": f"clip{number}", "vast_cap": row["desc"], "subtitle": row["subtitle"]} for number, row in enumerate(train)
    ]
    _dataset(folder / "data" / "vast150k", {"annotations150k.json": large}, short)
    _dataset(folder / "data" / "audiocaps", {"descs_ret_train.json": train, "descs_ret_test.json": test}, short, sound)
    short.unlink()
    sound.unlink()


def _row(name: str, number: int) -> dict[str, str]:
    said = f"{_WHO[number % len(_WHO)]} {_WHAT[number % len(_WHAT)]}"
    return {"video_id": name, "desc": f"{said} .", "subtitle": "" if number % 4 == 0 else f"the {said}"}


def _dataset(folder: Path, lists: dict[str, list[dict[str, str]]], source: Path, sound: Path | None = None) -> None:
    (folder / "annotations").mkdir(parents=True)
    (folder / "videos").mkdir()
    (folder / "audios").mkdir()
    for name, rows in lists.items():
        (folder / "annotations" / name).write_text(json.dumps(rows), encoding="utf-8")
        for row in rows:
            name = row.get("video_id") or row["clip_id"]
            (folder / "videos" / f"{name}.mp4").write_bytes(source.read_bytes())
            if sound is not None:
                (folder / "audios" / f"{name}.wav").write_bytes(sound.read_bytes())
