"""Formats of files of features, one file each: what such a file holds, without saying yet which of it are the features.

A format is a class with the endings of its files (or a test for its folders) and `read(path)`; registering it is all that it takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from calmrl_lab.registry import Registry
from calmrl_lab.store.convert.reading.content import Content


class Format(Protocol):
    """A format of files, or of folders, of features. The first line of its docstring says what people know it as.

    `endings`: of its files, in lower case. `is_folder`: whether a folder is of this format.
    """

    endings: ClassVar[tuple[str, ...]]

    @staticmethod
    def is_folder(path: Path) -> bool: ...

    @staticmethod
    def read(path: Path) -> Content: ...


formats = Registry("feature format", "calmrl_lab.store.convert.formats", group="calmrl_lab.formats")
