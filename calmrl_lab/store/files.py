"""The files of a store: written once with their checksums into a hidden sibling, then renamed into place all at once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.store.schema import DIGEST_FILE, FORMAT, PROVENANCE_FILE


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


def flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A hidden sibling of `target` to fill; renamed to `target` when the block ends well, removed when it does not.

    Whoever looks at `target` sees nothing (or what was there before) or the whole. Raises CalmrlError if `target` exists (with
    `overwrite`, only if it is not a store), if the place cannot be written to; WorkFailedError if the disk is full.
    """
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        _may_take(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # mkdtemp makes it private; a store is as readable as the user's other files.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(partial, 0o777 & ~mask)
            yield partial
            _may_take(target, overwrite)
            _swap(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)


@contextmanager
def writing_errors(target: Path) -> Iterator[None]:
    """Turns the errors of the file system into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkFailedError(
                f"the disk is full: '{target}' could not be written, and nothing of it was left behind",
                hint=f"free some space in '{target.parent}' or write elsewhere",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CalmrlError(
                f"'{target}' cannot be written: {os.strerror(error.errno).lower()}",
                hint=f"choose a directory you may write to; '{target.parent}' is not one",
            ) from error
        raise WorkFailedError(f"'{target}' could not be written: {error}") from error


def _may_take(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise CalmrlError(f"'{target}' exists already", hint="choose another name, remove it, or pass --overwrite")
    if not looks_like_store(target):
        raise CalmrlError(
            f"'{target}' is not a feature store, so it is not overwritten", hint="choose another name or remove it"
        )


def looks_like_store(path: Path) -> bool:
    """True for a directory that is, or was before it was damaged, a feature store; also for an empty directory."""
    if path.is_symlink() or not path.is_dir():
        return False
    metadata = path / "zarr.json"
    if metadata.is_file():
        return FORMAT.encode() in metadata.read_bytes()
    return (path / DIGEST_FILE).is_file() or not any(path.iterdir())


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
    else:
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        os.rename(target, retired)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(retired, target)
            raise
        shutil.rmtree(retired)
    flush_folder(target.parent)


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed writer of the same target left: its directory exists, but nobody holds the lock on it."""
    for entry in os.scandir(target.parent):
        if not (
            entry.name.startswith(f".{target.name}.")
            and entry.name.endswith(".partial")
            and entry.is_dir(follow_symlinks=False)
        ):
            continue
        try:
            handle = os.open(entry.path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)
