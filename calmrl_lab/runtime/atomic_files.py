"""Files written whole or not at all, one or several at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from calmrl_lab.runtime.atomic_folders import writing_errors

_TEMPORARY = re.compile(r"\..*\.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never half of one.

    Raises WorkFailedError if the disk is full or the file may not be written; the old file is then as it was.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place first, and rename them, in the order of `files`, only when all are whole.

    Ctrl-C between two renames carries out the others before it is raised. A killed process may leave the first ones new and the others
    old: the last file should say what the others are. Raises WorkFailedError as `write_atomically` does, the old files untouched.
    """
    waiting = [(path.with_name(f".{path.name}.tmp"), path) for path in files]
    try:
        for (temporary, path), data in zip(waiting, files.values(), strict=True):
            with writing_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
    except BaseException:
        for temporary, _ in waiting:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    try:
        for temporary, path in waiting:
            with writing_errors(path):
                os.replace(temporary, path)
    except BaseException:
        for temporary, path in waiting:
            with suppress(OSError):
                os.replace(temporary, path)
        raise


def is_temporary(name: str) -> bool:
    """Whether a file of this name was left by `write_atomically` of a process that was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder` and the folders in it; whoever calls this is the only writer."""
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):
            path.unlink()
