"""Standard output and error of a command: closed pipes, closed streams and full disks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from calmrl_lab.errors import WorkFailedError


@contextmanager
def standard_streams() -> Iterator[None]:
    """Standard output that may end early: what nobody reads any more (`| head -1`, `>&-`) is dropped without an error.

    Raises WorkFailedError where the result could not be written for another reason (a full disk).
    """
    before = sys.stdout, sys.stderr
    # A closed stream is None. An open file in its place keeps its number from being given to a file of ours.
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - open as long as the process
    sys.stdout = _Droppable(sys.stdout or open(os.devnull, "w"))  # noqa: SIM115
    try:
        yield
        sys.stdout.flush()
    finally:
        with suppress(WorkFailedError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before[0] or sys.stdout, before[1] or sys.stderr


@contextmanager
def system_errors() -> Iterator[None]:
    """What the operating system refuses, and no code nearer to it has put into words, as one sentence."""
    try:
        yield
    except MemoryError as error:
        raise WorkFailedError(f"there is not enough memory: {str(error) or 'none is left'}") from error
    except OSError as error:
        # Without a number it is the complaint of a library, and a defect of ours.
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        where = f"'{error.filename}': " if error.filename else ""
        raise WorkFailedError(f"{where}{(error.strerror or str(error)).lower()}") from error


class _Droppable:
    """A text stream that drops what it is given once its reader has gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # What is still in the buffer would raise the same error when the process ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise WorkFailedError(f"the result could not be written to standard output: {error.strerror or error}") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
