"""Pickles of plain arrays (.pkl): read by an unpickler that constructs these and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, content_of
from calmrl_lab.store.convert.reading.plain_pickle import load_plain


@formats.register("pickle")
class Pickle:
    """Pickle (.pkl) of arrays, numbers, strings and containers: {id: array}, {"features": ..., "ids": ...}, or a list of dicts"""

    endings: ClassVar[tuple[str, ...]] = (".pkl", ".pickle", ".p")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        return content_of(path, load_plain(path, path.read_bytes()))
