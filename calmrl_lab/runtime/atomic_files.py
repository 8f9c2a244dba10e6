"""Files written whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from calmrl_lab.errors import CalmrlError

if TYPE_CHECKING:
    pass


_TEMPORARY = re.compile(r"\..*\.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CalmrlError(f"'{path}' cannot be written: {error.strerror or error}") from None


def is_temporary(name: str) -> bool:
    """Whether a file of this name was left by `write_atomically` of a process that was killed."""
    return _TEMPORARY.fullmatch(name) is not None
