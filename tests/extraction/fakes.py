"""A tiny dataset and encoder for the pipeline's tests, importable by worker processes through an entry point on their path.

Texts steer what happens, in memory or in files: see the branches of `FakeEncoder`.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from feature_extractors.protocols import AbsentError, File, Item, Manifest, MediaError, Text


class FakeEncoder:
    """Letters of a text to a vector."""

    dimension = 8

    def __init__(self, device="cpu", weights=None, precision="", **options):
        self.device = device
        self.slow = float(os.environ.get("FAKE_SECONDS", "0"))
        self.fingerprint = os.environ.get("FAKE_FINGERPRINT", "fake-1") + ("-" + precision if precision else "")

    def prepare(self, medium):
        text = medium.text if isinstance(medium, Text) else Path(medium.path).read_text()
        if text == "crash":
            os._exit(9)
        if text == "hang":
            time.sleep(1000)
        if text == "bad":
            raise MediaError("decode_error", "the text is bad")
        if text == "odd":
            raise KeyError("a library complains")
        if text == "absent":
            raise AbsentError
        if text == "once":  # killed from outside, but only the first time
            seen = Path(f"{medium.path}.seen")
            if not seen.exists():
                seen.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow)
        return np.frombuffer(text.encode().ljust(8)[:8], dtype=np.uint8).astype(np.float32)

    def encode(self, batch):
        if devices := os.environ.get("FAKE_DEVICES"):
            known = set(Path(devices).read_text().split()) if os.path.exists(devices) else set()
            Path(devices).write_text(" ".join(known | {self.device}))
        texts = [bytes(row.astype(np.uint8)).decode().strip() for row in batch]
        if "segfault" in texts:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "raise" in texts:
            raise IndexError("no such letter")
        rows = np.stack(batch) / 128
        rows[[text == "nan" for text in texts]] = np.nan
        rows[[text == "huge" for text in texts]] *= 1e6
        # As real encoders, a row may depend on its batch: blocks and batches must be the same in every run.
        return (rows + len(batch) / 1024).astype(np.float32)

    def heads(self):
        return {"fake_head": np.eye(2, 8, dtype=np.float32)}


class FakeDataset:
    """Items from the JSON list in FAKE_TEXTS, `a|b` being two captions; and a second modality, of files if there is a folder."""

    presets: ClassVar = {"fake": {"caption": "fake", "note": "fake"}}

    def __init__(self, media=None, **options):
        self.media = media

    def manifest(self):
        items = []
        for number, text in enumerate(json.loads(os.environ["FAKE_TEXTS"])):
            media = {"caption": [Text(part) for part in text.split("|")]} if text else {}
            media["note"] = [File(self.media / f"{number}.txt")] if self.media else [Text(f"note {number}")]
            split = ("train", "validation", "test")[number % 3]
            items.append(Item(f"item{number:03d}", split, media, labels={"parity": str(number % 2)}))
        return Manifest("fake", "CC0", "nobody", ("caption", "note"), tuple(items))
