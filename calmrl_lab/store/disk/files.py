"""The files of a store as they are written: flushed to the disk, with size and checksum remembered for digest.json."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_folders import flush_folder
from calmrl_lab.store.schema import DIGEST_FILE, FORMAT, PROVENANCE_FILE


def looks_like_store(path: Path) -> bool:
    """True for a directory that is, or was before it was damaged, a feature store; also for an empty directory."""
    if path.is_symlink() or not path.is_dir():
        return False
    metadata = path / "zarr.json"
    if metadata.is_file():
        return FORMAT.encode() in metadata.read_bytes()
    return (path / DIGEST_FILE).is_file() or not any(path.iterdir())


def json_bytes(value: Any) -> bytes:
    """One spelling of JSON for everything in a store: the same value always gives the same bytes."""
    return encode_json(value, indent=2)


def encode_json(value: Any, indent: int | None = None) -> bytes:
    """`value` as one JSON document and a newline; CalmrlError if JSON cannot say it."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CalmrlError(f"{str(value)[:60]!r} cannot be kept as JSON: {error}") from None
    # A lone surrogate (a file name in another encoding) becomes \\udcxx, which JSON reads back as it was.
    return (text + "\n").encode("utf-8", "backslashreplace")


class FileTree:
    """A directory being filled. Remembers size and sha256 of every file, and can seal them into digest.json."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, dict[str, Any]] = {}

    def put(self, name: str, *pieces: bytes | memoryview, counted: bool = True) -> None:
        """Write `pieces` one after the other to the file `name` (relative, '/'-separated) and flush it to the disk."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum, size = hashlib.sha256(), 0
        with open(path, "xb", buffering=0) as file:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                checksum.update(view)
                size += len(view)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        if counted:
            self._files[name] = {"size": size, "sha256": checksum.hexdigest()}

    def put_json(self, name: str, value: Any, counted: bool = True) -> None:
        self.put(name, json_bytes(value), counted=counted)

    def seal(self) -> str:
        """Write digest.json and return the digest of the whole store."""
        files = dict(sorted(self._files.items()))
        digest = digest_of(files)
        self.put_json(DIGEST_FILE, {"algorithm": "sha256", "store": digest, "files": files}, counted=False)
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            flush_folder(folder)
        return digest


def digest_of(files: dict[str, dict[str, Any]]) -> str:
    """One sha256 over the names, sizes and checksums of all files (provenance.json is never among them)."""
    assert PROVENANCE_FILE not in files
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
