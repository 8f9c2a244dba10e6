"""New folders and files that appear whole or not at all, and the errors of the file system as sentences."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime import locks

# Endings of the hidden directories beside a target: one being filled, and an old one about to be removed.
_PARTIAL, _RETIRED = ".partial", ".retired"
# How long a reader waits for a folder that is between two renames, in seconds.
_PATIENCE = 2.0


@contextmanager
def new_directory(target: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A hidden sibling of `target` to fill; renamed to `target` when the block ends well, removed when it does not.

    Whoever looks at `target` sees nothing (or what was there before) or the whole. Raises CalmrlError if `target` exists (with
    `overwrite`, only if it is not `replaceable`); WorkFailedError if it may not be written or the disk is full.
    """
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        recover(target)
        may_take(target, overwrite, replaceable)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workshop(target) as (partial, _):
            yield partial
            may_take(target, overwrite, replaceable)
            with locks.only_writer(target) if target.exists() else nullcontext():
                _swap(partial, target)


@contextmanager
def new_file(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A file in a hidden sibling of `target` to write to, renamed to `target` when the block ends well; see `new_directory`."""
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        recover(target)
        may_take(target, overwrite, Path.is_file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workshop(target) as (partial, _):
            yield partial / target.name
            with open(partial / target.name, "rb+") as file:
                os.fsync(file.fileno())
            may_take(target, overwrite, Path.is_file)
            os.replace(partial / target.name, target)
            partial.rmdir()
            flush_folder(target.parent)


@contextmanager
def replaced_folder(target: Path, refuse: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden sibling of `target` to fill, as in `new_directory`, with the lock on `target` held from the beginning: a second writer is
    refused at once. An old folder is replaced without asking unless `refuse` raises.
    """
    target = Path(os.path.realpath(target))
    with ExitStack() as stack:
        with writing_errors(target):
            recover(target)
            refuse_working_folder(target)
            if os.path.lexists(target) and not target.is_dir():
                raise CalmrlError(f"'{target}' exists and is not a folder", hint="choose another name or remove it")
            stack.enter_context(locks.claimed(target))
            refuse(target)
            partial, _ = stack.enter_context(_workshop(target))
        yield partial
        with writing_errors(target):
            _swap(partial, target)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling of `target` for what is made on the way to it: removed at the end, or by the next writer of `target` if this one is killed."""
    target = Path(os.path.abspath(target))
    with writing_errors(target):
        recover(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workshop(target) as (partial, _):
            yield partial
            shutil.rmtree(partial)


def refuse_working_folder(target: Path) -> None:
    """CalmrlError for the folder that the process works in, or one above it: renaming it would leave the process without one."""
    if Path.cwd().resolve().is_relative_to(target):
        raise CalmrlError(f"'{target}' is the folder you work in, so it cannot be replaced", hint="choose a folder of its own")


def replace_folder(target: Path, fill: Callable[[Path], None]) -> int:
    """Put a folder that `fill` has filled in the place of `target`, whose lock the caller holds; the handle that holds the lock on the new one."""
    with _workshop(target) as (partial, handle):
        fill(partial)
        _swap(partial, target)
        # A lock is released when the last copy of its handle is closed.
        return os.dup(handle)


@contextmanager
def _workshop(target: Path) -> Iterator[tuple[Path, int]]:
    """A directory beside `target`, locked for as long as its writer lives, and the handle that holds the lock; what is left in it when
    the writer fails is removed."""
    partial, handle = _locked_directory(target)
    try:
        # mkdtemp makes it private; a store is as readable as the user's other files.
        os.chmod(partial, 0o777 & ~_umask())
        yield partial, handle
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _locked_directory(target: Path) -> tuple[Path, int]:
    """A new directory beside `target` and the handle that holds its lock."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
        # Before it is locked, another writer may take it for one that a killed writer left.
        with suppress(FileNotFoundError, CalmrlError):
            return partial, locks.lock_or_refuse(partial)


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


def settled(target: Path) -> Path:
    """`target`, after waiting for a writer that is between two renames. Raises CalmrlError if a writer was killed there."""
    end = time.monotonic() + _PATIENCE
    while not os.path.lexists(target) and any(_beside(Path(os.path.abspath(target)), _RETIRED)):
        old = retired(target)
        if old is not None:
            raise CalmrlError(
                f"'{target}' is gone: a command was killed while it replaced it; what was there before is '{old}'",
                hint=f"repeat that command, or: mv {old} {target}",
            )
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return target


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
            raise WorkFailedError(
                f"'{target}' cannot be written: {os.strerror(error.errno).lower()}",
                hint=f"choose a directory you may write to; '{target.parent}' is not one",
            ) from error
        if error.errno == errno.EFBIG:
            raise WorkFailedError(
                f"'{target}' could not be written: it would be larger than a file may be here, and nothing of it was left behind",
                hint="a limit is set (ulimit -f), or the file system holds no file of this size",
            ) from error
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise WorkFailedError(
                f"'{target}' cannot be replaced: {os.strerror(error.errno).lower()}",
                hint="a mount point cannot be renamed; choose a folder inside it",
            ) from error
        raise WorkFailedError(f"'{target}' could not be written: {error}") from error


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure."""
    if os.name == "nt":  # folders cannot be opened there, and names need no flushing
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def may_take(target: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
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
    """Rename `partial` to `target`. The lock on an old `target` is held, under whatever name, so that nobody takes it for abandoned."""
    old = partial.with_suffix(_RETIRED)
    try:
        if target.exists() and any(target.iterdir()):
            os.rename(target, old)
        os.rename(partial, target)
        flush_folder(target.parent)
    except BaseException:
        # Ctrl-C included: whatever came between the two renames, the old one is put back.
        if not os.path.lexists(target) and os.path.lexists(old):
            os.rename(old, target)
        raise
    finally:
        if os.path.lexists(old) and os.path.lexists(target):
            _discard(old)


def _discard(old: Path) -> None:
    """Remove an old one. What is half removed must not be put back, so it first gets the name of what is no longer wanted."""
    unwanted = old.with_suffix(_PARTIAL)
    os.rename(old, unwanted)
    shutil.rmtree(unwanted, ignore_errors=True)


def _beside(target: Path, suffix: str) -> Iterator[Path]:
    """Hidden directories beside `target` that belong to a writer of it, dead or alive."""
    with suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            if (
                entry.name.startswith(f".{target.name}.")
                and entry.name.endswith(suffix)
                and entry.is_dir(follow_symlinks=False)
            ):
                yield Path(entry.path)


def _abandoned(target: Path, suffix: str) -> Iterator[Path]:
    """Directories beside `target` that a killed writer left: they exist, but nobody holds the lock on them (it is held meanwhile)."""
    for path in _beside(target, suffix):
        try:
            handle = locks.lock(path)
        except OSError:
            continue
        try:
            yield path
        finally:
            os.close(handle)
