"""A tiny dataset and encoder for the pipeline's tests, importable by spawned workers through an entry point on their path.

Texts steer what happens: "crash" kills the worker, "nan" makes the encoder return NaN, "bad" cannot be prepared, "absent" has nothing.
"""

import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from feature_extractors.protocols import AbsentError, File, Item, Manifest, MediaError, Text


class FakeEncoder:
    """Letters of a text to a vector."""

    dimension = 8
    fingerprint = "fake-1"

    def __init__(self, device="cpu", weights=None, **options):
        self.slow = float(os.environ.get("FAKE_SECONDS", "0"))
        self.fingerprint = os.environ.get("FAKE_FINGERPRINT", "fake-1")

    def prepare(self, medium):
        text = medium.text if isinstance(medium, Text) else Path(medium.path).read_text()
        if text == "crash":
            os._exit(9)
        if text == "bad":
            raise MediaError("decode_error", "the text is bad")
        if text == "odd":
            raise ValueError("a library complains")
        if text == "absent":
            raise AbsentError
        time.sleep(self.slow)
        return np.frombuffer(text.encode().ljust(8)[:8], dtype=np.uint8).astype(np.float32)

    def encode(self, batch):
        rows = np.stack(batch) / 128
        rows[[bytes(round(float(v) * 128) for v in row).strip() == b"nan" for row in rows]] = np.nan
        return rows.astype(np.float32)

    def heads(self):
        return {"fake_head": np.eye(2, 8, dtype=np.float32)}


class FakeDataset:
    """Items from the environment variable FAKE_TEXTS, `a|b` being two captions; and a second modality of files."""

    presets: ClassVar = {"fake": {"caption": "fake", "note": "fake"}}

    def __init__(self, media=None, **options):
        self.media = media

    def manifest(self):
        items = []
        for number, text in enumerate(os.environ["FAKE_TEXTS"].split(",")):
            media = {"caption": [Text(part) for part in text.split("|")]} if text else {}
            media["note"] = [File(self.media / f"{number}.txt")] if self.media else [Text(f"note {number}")]
            items.append(
                Item(
                    f"item{number:03d}", ("train", "validation", "test")[number % 3], media, labels={"parity": str(number % 2)}
                )
            )
        return Manifest("fake", "CC0", "nobody", ("caption", "note"), tuple(items))
