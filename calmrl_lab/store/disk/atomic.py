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

# Endings of the hidden directories beside a target: one being filled, and an old one about to be removed.
_PARTIAL, _RETIRED = ".partial", ".retired"


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
    with writing_errors(target), _workshop(target, overwrite, replaceable) as partial:
        # mkdtemp makes it private; a store is as readable as the user's other files.
        os.chmod(partial, 0o777 & ~_umask())
        yield partial
        may_take(target, overwrite, replaceable)
        _swap(partial, target)


@contextmanager
def new_file(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A file in a hidden sibling of `target` to write to, renamed to `target` when the block ends well; see `new_directory`."""
    target = Path(os.path.abspath(target))
    with writing_errors(target), _workshop(target, overwrite, Path.is_file) as partial:
        yield partial / target.name
        with open(partial / target.name, "rb+") as file:
            os.fsync(file.fileno())
        may_take(target, overwrite, Path.is_file)
        os.replace(partial / target.name, target)
        partial.rmdir()
        flush_folder(target.parent)


@contextmanager
def _workshop(target: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A directory beside `target`, locked for as long as its writer lives; what is left in it when the writer fails is removed."""
    recover(target)
    may_take(target, overwrite, replaceable)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, lock = _locked_directory(target)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked_directory(target: Path) -> tuple[Path, int]:
    """A new directory beside `target` and the handle that holds its lock."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Before it was locked, another writer may have taken it for one that a killed writer left.
        if partial.is_dir():
            return partial, lock
        os.close(lock)


def recover(target: str | Path) -> None:
    """Undo what was only half done when a writer of `target` was killed.

    While `target` is replaced there is, between two renames, nothing there and the old one lies beside it under another name: it is put
    back. What the killed writer had begun, or had no longer removed, is removed.
    """
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        for old in _abandoned(target, _RETIRED):
            if os.path.lexists(target):
                _discard(old)
            else:
                os.rename(old, target)
        for left in _abandoned(target, _PARTIAL):
            shutil.rmtree(left, ignore_errors=True)


def retired(target: Path) -> Path | None:
    """Where the old one is if a writer was killed while it replaced `target`; None if nothing of that kind happened."""
    return None if os.path.lexists(target) else next(_abandoned(Path(os.path.abspath(target)), _RETIRED), None)


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


def may_take(target: Path, overwrite: bool, replaceable: Callable[[Path], bool] = looks_like_store) -> None:
    """CalmrlError if something is at `target` that must not be replaced: anything without `overwrite`, else what is not `replaceable`."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise CalmrlError(f"'{target}' exists already", hint="choose another name, remove it, or pass --overwrite")
    with writing_errors(target):
        if not replaceable(target):
            raise CalmrlError(
                f"'{target}' is something else, so it is not overwritten", hint="choose another name or remove it"
            )


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        flush_folder(target.parent)
        return
    lock = os.open(target, os.O_RDONLY)
    try:
        # Held under whatever name, so that nobody takes this for the work of a writer who was killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = partial.with_suffix(_RETIRED)
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(old, target)
            raise
        flush_folder(target.parent)
        _discard(old)
    finally:
        os.close(lock)


def _discard(old: Path) -> None:
    """Remove an old one. What is half removed must not be put back, so it first gets the name of what is no longer wanted."""
    unwanted = old.with_suffix(_PARTIAL)
    os.rename(old, unwanted)
    shutil.rmtree(unwanted, ignore_errors=True)


def _abandoned(target: Path, suffix: str) -> Iterator[Path]:
    """Directories beside `target` that a killed writer left: they exist, but nobody holds the lock on them (it is held meanwhile)."""
    try:
        entries = list(os.scandir(target.parent))
    except OSError:
        return
    for entry in entries:
        if not (
            entry.name.startswith(f".{target.name}.") and entry.name.endswith(suffix) and entry.is_dir(follow_symlinks=False)
        ):
            continue
        try:
            handle = os.open(entry.path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            continue
        try:
            yield Path(entry.path)
        finally:
            os.close(handle)
