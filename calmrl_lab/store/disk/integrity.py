"""Integrity of the files of a store: sizes and sha256 of digest.json against the disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.disk.arrays import read_json
from calmrl_lab.store.disk.files import digest_of
from calmrl_lab.store.schema import DIGEST_FILE

# Up to this size a store is read and checked whole when it is opened (about 0.2 s); beyond, each file when it is first read.
WHOLE_CHECK_BYTES = 256 * 2**20


class Checksums:
    """What digest.json says of the files of a store.

    `check(name)` compares one file with it and remembers the answer. Without digest.json (a store that another Zarr tool
    wrote) there is nothing to compare with, and `files` is empty. Raises CalmrlError if digest.json itself is missing
    though `expected`, or damaged.
    """

    def __init__(self, root: Path, expected: bool) -> None:
        self.root = root
        self.files: dict[str, dict[str, Any]] = {}
        self.digest: str | None = None
        self._checked: set[str] = set()
        self._identity = self._look()
        if expected or (root / DIGEST_FILE).exists():
            self.files, self.digest = _read_digest(root)

    @property
    def bytes(self) -> int:
        return sum(entry["size"] for entry in self.files.values())

    def check_sizes(self) -> None:
        """CalmrlError for the first file that is missing or has another length: cheap, without reading any."""
        for name, entry in self.files.items():
            found = size_of(self.root / name)
            if found is None:
                raise CalmrlError(f"store '{self.root}' is damaged: the file {name} is missing", hint=_VERIFY.format(self.root))
            if found != entry["size"]:
                raise CalmrlError(
                    f"store '{self.root}' is damaged: the file {name} has {found} bytes; expected {entry['size']}",
                    hint=_VERIFY.format(self.root),
                )

    def check(self, name: str) -> None:
        """CalmrlError if the file `name` is not the one that was written; files that digest.json does not list pass."""
        if self._look() != self._identity:
            raise CalmrlError(f"store '{self.root}' was replaced or removed since it was opened", hint="open it again")
        if name in self._checked or name not in self.files:
            return
        found = size_of(self.root / name)
        if found is None:
            raise CalmrlError(f"store '{self.root}' is damaged: the file {name} is missing", hint=_VERIFY.format(self.root))
        if not self.matches(name):
            raise CalmrlError(
                f"store '{self.root}' is damaged: the file {name} is not what was written (checksum differs)",
                hint=_VERIFY.format(self.root),
            )
        self._checked.add(name)

    def _look(self) -> tuple[int, int] | None:
        """What tells this store from another one that takes its place while it is open."""
        try:
            found = os.stat(self.root / "zarr.json")
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def check_all(self) -> None:
        for name in self.files:
            self.check(name)

    def matches(self, name: str) -> bool:
        return sha256_of(self.root / name) == self.files[name]["sha256"]

    def unlisted(self) -> Iterator[str]:
        """Files below the store that digest.json should list and does not; hidden ones (.DS_Store) hold no data."""
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and not path.name.startswith(".") and name not in self.files and name not in _UNCOUNTED:
                yield name


def sha256_of(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CalmrlError(f"the file '{path}' cannot be read: {error.strerror}") from None


def size_of(path: Path) -> int | None:
    """Bytes of a file, None if there is no such file; CalmrlError if one may not look."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CalmrlError(f"the file '{path}' cannot be read: {error.strerror}") from None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read_digest(root: Path) -> tuple[dict[str, dict[str, Any]], str]:
    content = read_json(root, DIGEST_FILE)
    try:
        if content["algorithm"] != "sha256":
            raise CalmrlError(f"store '{root}': {DIGEST_FILE} uses {content['algorithm']!r}; expected 'sha256'")
        files = {str(name): {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in content["files"].items()}
        digest = str(content["store"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CalmrlError(f"store '{root}' is damaged: {DIGEST_FILE} does not list files with size and sha256") from None
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
        raise CalmrlError(f"store '{root}' is damaged: {DIGEST_FILE} lists files outside of the store")
    if digest_of(files) != digest:
        raise CalmrlError(f"store '{root}' is damaged: {DIGEST_FILE} contradicts itself", hint=_VERIFY.format(root))
    return files, digest


_UNCOUNTED = (DIGEST_FILE, "provenance.json")
_VERIFY = "`calmrl-lab store verify {}` lists everything that is damaged; extract or import those parts again"
