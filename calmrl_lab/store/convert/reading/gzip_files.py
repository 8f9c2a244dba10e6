"""Files that gzip compressed, read as what they hold; a file that unpacks to far more than its own size is refused before it fills the memory."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from calmrl_lab.errors import CalmrlError

# What is read compressed as well as plain.
GZIPPED = (".csv.gz", ".tsv.gz", ".txt.gz", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".tar.gz", ".tgz")
_MAGIC = b"\x1f\x8b"
# Text of numbers shrinks to a third, repeated words to a fiftieth; below the first number of bytes it does not matter.
_HARMLESS, _TIMES = 1 << 28, 200


def plain_suffix(path: Path) -> str:
    """The ending of a file, in lower case, without that of gzip.

    >>> [plain_suffix(Path(name)) for name in ("a.csv", "a.CSV.gz", "v.tgz", "a.b.npy")]
    ['.csv', '.csv', '.tar', '.npy']
    """
    name = path.name.lower()
    if name.endswith(GZIPPED):
        return ".tar" if name.endswith(".tgz") else Path(name[:-3]).suffix
    return path.suffix.lower()


def plain_stem(path: Path) -> str:
    """The name of a file without its ending, and without that of gzip."""
    return Path(path.stem).stem if path.name.lower().endswith(GZIPPED) and path.suffix.lower() == ".gz" else path.stem


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if they are gzip's, whatever the file is called; they can be read forwards only then.

    Raises OSError as `open`, and CalmrlError, while reading, for compressed data that are damaged or out of proportion.
    """
    with path.open("rb") as file:
        if file.peek(2)[:2] != _MAGIC:
            yield file
            return
        size = path.stat().st_size
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield io.BufferedReader(_Bounded(path, unpacked, max(_HARMLESS, _TIMES * size)), 1 << 20)


class _Bounded(io.RawIOBase):
    """The unpacked bytes of a file, up to a number of them."""

    def __init__(self, path: Path, unpacked: gzip.GzipFile, limit: int) -> None:
        self._path, self._unpacked, self._limit = path, unpacked, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        place = memoryview(buffer).cast("B")
        try:
            data = self._unpacked.read(len(place))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            said = "it breaks off" if isinstance(error, EOFError) else "its bytes are not what gzip wrote"
            raise CalmrlError(f"'{self._path}' is damaged: {said}", hint="write it again, or download it again") from None
        self._limit -= len(data)
        if self._limit < 0:
            raise CalmrlError(
                f"'{self._path}' unpacks to more than {_TIMES} times its size, which features and tables do not",
                hint="if it is what it should be, unpack it (gunzip FILE), and import what comes out",
            )
        place[: len(data)] = data
        return len(data)
