"""New directories and files that appear whole or not at all, and the errors of the file system as sentences."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.store.schema import DIGEST_FILE, FORMAT


def looks_like_store(path: Path) -> bool:
    """True for a directory that is, or was before it was damaged, a feature store; also for an empty directory."""
    if path.is_symlink() or not path.is_dir():
        return False
    metadata = path / "zarr.json"
    if metadata.is_file():
        return FORMAT.encode() in metadata.read_bytes()
    return (path / DIGEST_FILE).is_file() or not any(path.iterdir())


@contextmanager
def new_directory(
    target: str | Path, overwrite: bool = False, replaceable: Callable[[Path], bool] = looks_like_store
) -> Iterator[Path]:
    """A hidden sibling of `target` to fill; renamed to `target` when the block ends well, removed when it does not.

    Whoever looks at `target` sees nothing (or what was there before) or the whole. Raises CalmrlError if `target` exists (with
    `overwrite`, only if it is not `replaceable`) or may not be written; WorkFailedError if the disk is full.
    """
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        _may_take(target, overwrite, replaceable)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # mkdtemp makes it private; a store is as readable as the user's other files.
            os.chmod(partial, 0o777 & ~_umask())
            yield partial
            _may_take(target, overwrite, replaceable)
            _swap(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)


@contextmanager
def new_file(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A hidden sibling of `target` to write to, renamed to `target` when the block ends well; see `new_directory`."""
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        _may_take(target, overwrite, Path.is_file)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        try:
            os.chmod(name, 0o666 & ~_umask())
            yield Path(name)
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            _may_take(target, overwrite, Path.is_file)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def writing_errors(target: Path) -> Iterator[None]:
    """Turns the errors of the file system into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            # Not from the system: a library that reads what is being copied complains about its file.
            raise
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


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _may_take(target: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise CalmrlError(f"'{target}' exists already", hint="choose another name, remove it, or pass --overwrite")
    if not replaceable(target):
        raise CalmrlError(f"'{target}' is something else, so it is not overwritten", hint="choose another name or remove it")


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
