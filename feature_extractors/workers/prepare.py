"""Preparation of media in processes of their own, so that a hang or a crash costs one medium only."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError, WorkFailedError, complaint
from feature_extractors.encoder_setup import Equipment
from feature_extractors.media.links import AllowedPlaces
from feature_extractors.protocols import AbsentError, Encoder, File, MediaError, Medium, OrSilence, bare
from feature_extractors.workers.process import NoAnswer, Process, ProcessDied
from feature_extractors.workers.shared_memory import send_array

# What becomes of a medium: the array its encoder takes, nothing to take, or why not.
Outcome = np.ndarray | AbsentError | MediaError

_START_SECONDS = 600.0


def is_out_of_process(medium: Medium) -> bool:
    """True for files and recipes, which may crash a native library: they are prepared in another process."""
    return isinstance(bare(medium), File) or hasattr(medium, "make")


def attempt(encoder: Encoder, medium: Medium, media: Path | None, followed: Sequence[Path] = ()) -> Outcome:
    """`encoder.prepare` of the medium, or why that was not possible.

    Whatever a library throws at one medium is the failure of that medium; only a CalmrlError (a missing package, wrong weights)
    concerns them all, and is raised.
    """
    if isinstance(medium, OrSilence):
        outcome = attempt(encoder, medium.medium, media, followed) if medium.medium is not None else AbsentError()
        missing = isinstance(outcome, AbsentError) or (isinstance(outcome, MediaError) and outcome.code == "not_found")
        return encoder.stand_in() if missing and hasattr(encoder, "stand_in") else outcome
    try:
        if isinstance(medium, File):
            check_place(medium.path, media, followed)
        made: Any = medium.make() if hasattr(medium, "make") else medium
        return encoder.prepare(made)
    except (MediaError, AbsentError) as error:
        return error
    except CalmrlError:
        raise
    except Exception as error:
        return MediaError("decode_error", complaint(error))


def check_place(path: Path, media: Path | None, followed: Sequence[Path] = ()) -> None:
    """Files outside the media folder are refused, also through `..` or a link: a manifest is somebody else's text.

    `followed`: folders that links may lead to all the same.
    """
    places = AllowedPlaces(media, followed) if media is not None else None

    def leads_outside(place: Path) -> bool:
        return places is not None and not places.holds(place)

    if leads_outside(path):
        raise MediaError("outside_media", "the path leads outside the media folder")
    try:
        status = path.stat()
        # A folder of frames: its files may be links too.
        entries = list(os.scandir(path)) if stat.S_ISDIR(status.st_mode) else None
    except OSError:
        raise MediaError("not_found", "no such file") from None
    if entries is not None:
        if any(entry.is_symlink() and leads_outside(Path(entry.path)) for entry in entries):
            raise MediaError("outside_media", "a file of the folder leads outside the media folder")
        return
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("not_media", "not an ordinary file")
    if status.st_size == 0:
        raise MediaError("empty_file", "the file is empty")


def failure(item: str, modality: str, medium: Medium, error: MediaError) -> dict[str, Any]:
    """The line of failures.jsonl: where, why, and which bytes it was (size and digest of the first MiB)."""
    record: dict[str, Any] = {"id": item, "modality": modality, "code": error.code, "error": error.detail}
    medium = bare(medium) or medium
    if isinstance(medium, File):
        record["path"] = medium.path.name
        with suppress(OSError):
            if medium.path.is_file() and error.code != "outside_media":
                with open(medium.path, "rb") as file:
                    first = hashlib.sha256(file.read(1 << 20)).hexdigest()
                record |= {"size": medium.path.stat().st_size, "sha256_first_mib": first}
    return record


class Preparers:
    """Processes that prepare media ahead of the encoder; outcomes come in the order in which media were added.

    At most `window` outcomes are in flight or wait to be fetched. A medium that takes more than `timeout` seconds is a failure, and
    so is one that its process dies of twice; the process is replaced, and all other media are unaffected.
    """

    def __init__(self, equipment: Equipment, count: int, timeout: float, window: int, log: Path | None = None) -> None:
        self._start: Callable[[], Process] = lambda: Process(_serve_preparing, equipment, log=log)
        self._timeout = timeout
        self._window = window
        self._threads = ThreadPoolExecutor(count)
        self._own = threading.local()
        self._started: list[Process] = []
        self._closed = False
        self._waiting: deque[tuple[str, Medium]] = deque()
        self._flying: deque[Future[tuple[Outcome, float]]] = deque()

    def add(self, tasks: Iterable[tuple[str, Medium]]) -> None:
        """Queue (modality, medium) pairs."""
        self._waiting.extend(tasks)
        self._launch()

    def next(self) -> tuple[Outcome, float]:
        """The outcome of the next medium, and how many seconds its preparation took."""
        future = self._flying.popleft()
        self._launch()
        return future.result()

    def close(self) -> None:
        self._closed = True
        for process in list(self._started):
            process.kill()
        self._threads.shutdown(cancel_futures=True)

    def _launch(self) -> None:
        while self._waiting and len(self._flying) < self._window:
            self._flying.append(self._threads.submit(self._prepare, self._waiting.popleft()))

    def _prepare(self, task: tuple[str, Medium]) -> tuple[Outcome, float]:
        """Runs in a thread that waits for its process."""
        how = ""
        for _ in range(2):
            # Once more after a death: it may have been killed from outside, for want of memory.
            process = self._process()
            try:
                process.send(task)
                outcome, seconds = process.receive(self._timeout)
                if outcome is None:
                    return process.receive_array(), seconds
            except NoAnswer:
                self._replace(process)
                return MediaError("timeout", f"not read within {self._timeout:g} s"), self._timeout
            except ProcessDied as death:
                self._replace(process)
                how = str(death)
                if self._closed:
                    break
                continue
            if isinstance(outcome, CalmrlError):
                raise outcome
            return outcome, seconds
        return MediaError("worker_crash", f"the process that read it {how}"), 0.0

    def _process(self) -> Process:
        process: Process | None = getattr(self._own, "process", None)
        if process is None:
            process = self._start()
            try:
                process.receive(_START_SECONDS)
            except (NoAnswer, ProcessDied) as error:
                process.kill()
                raise WorkFailedError(f"a process that reads media could not start: it {error or 'did not answer'}") from None
            self._own.process = process
            self._started.append(process)
        return process

    def _replace(self, process: Process) -> None:
        process.kill()
        self._started.remove(process)
        self._own.process = None


def _serve_preparing(connection: Connection, equipment: Equipment) -> None:
    encoders: dict[str, Encoder] = {}
    connection.send("ready")
    while True:
        modality, medium = connection.recv()
        begun = time.monotonic()
        try:
            if modality not in encoders:
                encoders[modality] = equipment.on("cpu").encoder(modality)
            outcome: Any = attempt(encoders[modality], medium, equipment.media, equipment.followed)
        except CalmrlError as error:
            outcome = error
        seconds = time.monotonic() - begun
        if isinstance(outcome, np.ndarray):
            connection.send((None, seconds))
            send_array(connection, outcome)
        else:
            connection.send((outcome, seconds))
