"""Locks on folders: one process writes into a folder at a time, and the operating system releases the lock however that process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calmrl_lab.errors import CalmrlError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Where a folder cannot be opened as a file can (Windows), the lock is on a file of this name in it.
LOCK_FILE = ".lock"


def lock(folder: Path) -> int:
    """The handle that holds the lock on `folder`; closing it releases the lock.

    Raises BlockingIOError if another process holds the lock, and OSError if `folder` cannot be opened or its file system has no locks.
    """
    handle = _open(folder)
    try:
        _acquire(handle)
    except OSError:
        os.close(handle)
        raise
    return handle


def lock_or_refuse(folder: Path) -> int:
    """The handle that holds the lock on what `folder` names now; on a file system without locks, a handle that excludes nobody.

    Raises CalmrlError, which names the folder, if another process holds the lock.
    """
    while True:
        handle = _open(folder)
        try:
            _acquire(handle)
        except BlockingIOError:
            os.close(handle)
            raise CalmrlError(
                f"another process is writing into '{folder}'", hint="wait until it has finished, or choose another folder"
            ) from None
        except OSError:
            return handle
        # Between opening and locking, the other writer may have put a new folder in the place of this one.
        if fcntl is None or _is_at(handle, folder):
            return handle
        os.close(handle)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock on an existing `folder`. Raises CalmrlError, which names the folder, if another process holds it."""
    handle = lock_or_refuse(folder)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the lock on `folder`, which is made if there is none, and removed again if it is still empty at the end.

    Raises CalmrlError, which names the folder, if another process holds the lock, and OSError if the folder cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = False
    with suppress(FileExistsError):
        folder.mkdir()
        made = True
    try:
        with only_writer(folder):
            yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()


def _open(folder: Path) -> int:
    if fcntl is None:
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    return os.open(folder, os.O_RDONLY)


def _acquire(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError:
        raise BlockingIOError from None


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
