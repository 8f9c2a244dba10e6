"""Condition tokens on disk, beside a store: written whole or not at all, read memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Float16, Int

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime.atomic_folders import new_directory

FORMAT = "calmrl-condition-tokens"
_TOKENS, _INDEX = "tokens.f16", "index.json"


def tokens_folder(store: Path) -> Path:
    """Where the tokens of a store are kept: `<name>.tokens` beside it (3.7 MB per clip of 8 frames)."""
    return store.with_name(store.name.removesuffix(".zarr") + ".tokens")


class TokenWriter:
    """Takes tokens item by item; made by `writing_tokens`."""

    def __init__(self, file: BinaryIO, width: int, fingerprint: str) -> None:
        self._file = file
        self._about: dict[str, object] = {"format": FORMAT, "version": 1, "width": width, "fingerprint": fingerprint}
        self._ids: list[str] = []
        self._offsets = [0]
        self._captions: list[list[list[int]]] = []

    def add(self, name: str, condition: Float[np.ndarray, "T width"], captions: Sequence[Int[np.ndarray, " length"]]) -> None:
        """The condition tokens and the caption token ids of one item. Raises WorkFailedError where float16 cannot hold a value."""
        with np.errstate(over="ignore"):
            stored = np.asarray(condition, dtype=np.float16)
        if not np.isfinite(stored).all():
            raise WorkFailedError(
                f"the condition tokens of '{name}' do not fit float16", hint="check the weights: calmrl-lab weights check DIR"
            )
        self._file.write(np.ascontiguousarray(stored).data)
        self._ids.append(name)
        self._offsets.append(self._offsets[-1] + len(stored))
        self._captions.append([[int(token) for token in caption] for caption in captions])

    def index(self) -> dict[str, object]:
        """What says where in the file the tokens of an item are."""
        return {**self._about, "ids": self._ids, "offsets": self._offsets, "captions": self._captions}


@contextmanager
def writing_tokens(path: Path, width: int, fingerprint: str, overwrite: bool = False) -> Iterator[TokenWriter]:
    """A writer of tokens into the folder `path`, which appears, or is replaced, only when everything is written.

    Nothing is left behind if the body raises. Raises CalmrlError if `path` exists (with `overwrite`: and holds no tokens) or may not be
    written, WorkFailedError if the disk is full.
    """
    with new_directory(path, overwrite, lambda there: (there / _INDEX).is_file()) as folder:
        with (folder / _TOKENS).open("wb") as file:
            writer = TokenWriter(file, width, fingerprint)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        (folder / _INDEX).write_text(json.dumps(writer.index()))


class TokenFile:
    """Condition tokens of a store's items, memory-mapped.

    `ids`, `captions[i]` (token ids of each caption of item i) and `condition(i)` [T, width]. Raises CalmrlError for a folder of
    another kind or a file that is cut short.
    """

    def __init__(self, path: Path) -> None:
        try:
            index = json.loads((path / _INDEX).read_text())
        except (OSError, ValueError) as error:
            raise CalmrlError(
                f"no condition tokens in '{path}': {error}", hint="extract the test split again with --save-rerank-tokens"
            ) from None
        if index.get("format") != FORMAT or index.get("version") != 1:
            raise CalmrlError(f"'{path}' is of the format {index.get('format')} {index.get('version')}, expected {FORMAT} 1")
        self.path = path
        self.ids: list[str] = index["ids"]
        self.fingerprint: str = index["fingerprint"]
        self.captions = [[np.array(caption, dtype=np.int64) for caption in captions] for captions in index["captions"]]
        self._offsets: list[int] = index["offsets"]
        expected = self._offsets[-1] * index["width"] * 2
        size = (path / _TOKENS).stat().st_size
        if size != expected:
            raise CalmrlError(
                f"'{path / _TOKENS}' has {size} bytes, expected {expected}",
                hint="extract the test split again with --save-rerank-tokens",
            )
        self._rows = (
            np.memmap(path / _TOKENS, np.float16, "r", shape=(self._offsets[-1], index["width"]))
            if expected
            else np.zeros((0, 1), np.float16)
        )
        self._places = {name: place for place, name in enumerate(self.ids)}

    def place(self, name: str) -> int:
        """The position of an item; CalmrlError if its tokens were not kept."""
        if name not in self._places:
            raise CalmrlError(
                f"no condition tokens of item '{name}' in '{self.path}'", hint="re-rank the split whose tokens were kept"
            )
        return self._places[name]

    def condition(self, place: int) -> Float16[np.ndarray, "T width"]:
        """The tokens of the item at `place`."""
        return self._rows[self._offsets[place] : self._offsets[place + 1]]
