"""A Python process at the other end of a pipe: killed when it hangs, detected when it dies, ended with its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import WorkFailedError
from feature_extractors.workers.shared_memory import receive_array

# One thread per process: sums split over threads add in another order, so the bytes of a store would depend on the number of workers.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
) | {"TOKENIZERS_PARALLELISM": "false"}

# How long a process that is ending may take.
_LAST_SECONDS = 10.0


class ProcessDied(Exception):
    """The process ended on its own; the message says how (`was killed by SIGSEGV`)."""


class NoAnswer(Exception):
    """The process said nothing in the time it had."""


class Process:
    """Runs `serve(connection, *arguments)` in a new interpreter. What it prints goes to `log` (default: standard error).

    Not `multiprocessing.Process`: that imports the caller's main module again (slow, and endless in a script without a main guard), may
    not have children of its own when it dies with its parent, and shares the terminal's Ctrl-C. Here the child is in a session of its
    own, and a thread in it ends it as soon as the pipe to the parent closes, however the parent ended.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any, log: Path | None = None) -> None:
        self._connection, theirs = Pipe()
        code = f"from feature_extractors.workers.process import _serve; _serve({theirs.fileno()})"
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        output = None
        try:
            output = open(log, "ab") if log is not None else None  # noqa: SIM115 - closed below
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-c", code],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                # Never on standard output, which belongs to the result of the command.
                stdout=output or 2,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkFailedError(
                f"a worker process could not be started: {error}",
                hint="try fewer --workers; the same command goes on from there",
            ) from error
        finally:
            theirs.close()
            if output is not None:
                output.close()
        self.send((serve, arguments))

    def send(self, message: Any) -> None:
        """ProcessDied if there is nobody to read it."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessDied(self._how()) from None

    def receive(self, timeout: float | None = None) -> Any:
        """The next message. NoAnswer after `timeout` seconds without one, ProcessDied if there will be none."""
        try:
            if not self._connection.poll(timeout):
                raise NoAnswer
            return self._connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            raise ProcessDied(self._how()) from None

    def receive_array(self) -> np.ndarray:
        """What the other side sent with `send_array`; ProcessDied if it will not come."""
        try:
            return receive_array(self._connection)
        except (EOFError, OSError):
            raise ProcessDied(self._how()) from None

    def kill(self) -> None:
        """End it at once; its own children end with it. A thread that waits for its answer gets ProcessDied."""
        self._popen.kill()
        # One that waits for a disk that does not answer ends when the disk does.
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=_LAST_SECONDS)

    def _how(self) -> str:
        try:
            code = self._popen.wait(timeout=_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its pipe and did not end"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(handle: int) -> None:
    connection = Connection(handle)
    threading.Thread(target=_end_with_parent, args=(os.dup(handle),), daemon=True).start()
    serve, arguments = connection.recv()
    serve(connection, *arguments)


def _end_with_parent(handle: int) -> None:
    watch = select.poll()
    # No events asked for: only the other end closing wakes it.
    watch.register(handle, 0)
    watch.poll()
    os._exit(1)
