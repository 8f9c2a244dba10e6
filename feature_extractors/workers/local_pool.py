"""Blocks through worker processes of this machine: one lane per core, or a GPU, each with processes that read media ahead of it."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError, WorkFailedError
from feature_extractors.encoder_setup import Equipment
from feature_extractors.forecast import Spent
from feature_extractors.protocols import Medium
from feature_extractors.shards.folder import PartsFolder
from feature_extractors.shards.shard import write_part
from feature_extractors.workers.encode_block import BATCH, Block, encode_block, out_of_process_media
from feature_extractors.workers.prepare import Outcome, Preparers, attempt, is_out_of_process
from feature_extractors.workers.process import Process, ProcessDied

# Deaths of a worker over one block before the run gives up; those explained by a medium do not count.
_MAX_DEATHS = 4


@dataclass(frozen=True)
class WorkerConfig:
    """Numbers and devices of worker processes. `devices`: one lane each. `readers`: processes a lane that read its media.

    `timeout`: seconds that reading one medium may take. `ahead`: a lane knows its next block, so that its media are read while it
    still encodes the one before (worth it where reading and encoding do not share the cores).
    """

    devices: Sequence[str]
    readers: int
    timeout: float
    ahead: bool

    @property
    def window(self) -> int:
        """Media that may be ready and waiting: enough for the next batch where reading ahead pays, few where it only takes memory."""
        return BATCH + 2 * self.readers if self.ahead else 16


class LaneEncoder:
    """A lane: encoders on a device, and processes that prepare media for them."""

    def __init__(self, equipment: Equipment, crew: WorkerConfig, log: Path | None) -> None:
        self.encoders = equipment.encoders()
        self._equipment = equipment
        self._preparers = Preparers(equipment, crew.readers, crew.timeout, crew.window, log)
        self._expected: set[int] = set()

    def expect(self, block: Block) -> None:
        """Begin to read the media of a block. Blocks must be expected in the order in which they are encoded."""
        if block.number not in self._expected:
            self._expected.add(block.number)
            self._preparers.add(out_of_process_media(block, list(self.encoders)))

    def encode(self, block: Block, announce: Any = lambda *_: None) -> bytes:
        """The part of a block, as the bytes of its file."""
        self.expect(block)
        return encode_block(block, self.encoders, self._prepare, announce).to_bytes()

    def close(self) -> None:
        self._preparers.close()

    def _prepare(self, modality: str, medium: Medium) -> tuple[Outcome, float]:
        if is_out_of_process(medium):
            return self._preparers.next()
        return attempt(self.encoders[modality], medium, self._equipment.media, self._equipment.followed), 0.0


def run_local(
    equipment: Equipment, crew: WorkerConfig, finished: PartsFolder, blocks: Sequence[Block], stop: threading.Event
) -> Iterator[int | Spent]:
    """Encode `blocks` into parts of the folder `finished`; yields how many media have come through since the last time, and what media took.

    Once `stop` is set no block is begun any more, and the iteration ends when those under way are done.
    """
    lanes = _Lanes(equipment, crew, finished, blocks, stop)
    try:
        yield from lanes.run()
    finally:
        lanes.abandon()


class _Lanes:
    """One thread a lane, which does nothing but hand blocks to its process and wait for it."""

    def __init__(
        self, equipment: Equipment, crew: WorkerConfig, finished: PartsFolder, blocks: Sequence[Block], stop: threading.Event
    ) -> None:
        self._equipment, self._worker_config, self._finished, self._stop = equipment, crew, finished, stop
        self._blocks = iter(blocks)
        self._taking = threading.Lock()
        self._events: queue.Queue[int | Spent | BaseException | None] = queue.Queue()
        self._processes: dict[str, Process] = {}
        # Lanes whose process has finished a block: what they load is loaded.
        self._settled: set[str] = set()
        self._abandoned = False

    def run(self) -> Iterator[int | Spent]:
        threads = []
        for number, device in enumerate(self._worker_config.devices):
            thread = threading.Thread(target=self._lane, args=(f"{number}", device), daemon=True)
            thread.start()
            threads.append(thread)
        working = len(threads)
        while working:
            event = self._events.get()
            if event is None:
                working -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event

    def abandon(self) -> None:
        self._abandoned = True
        for process in list(self._processes.values()):
            process.kill()

    def _take(self) -> Block | None:
        with self._taking:
            return None if self._stop.is_set() else next(self._blocks, None)

    def _lane(self, name: str, device: str) -> None:
        try:
            block = self._take()
            while block is not None and not self._stop.is_set():
                following = self._take() if self._worker_config.ahead else None
                self._finish(name, device, block, following)
                block = following if self._worker_config.ahead else self._take()
        except BaseException as error:
            self._events.put(error)
        self._events.put(None)

    def _finish(self, name: str, device: str, block: Block, following: Block | None) -> None:
        """Have a block encoded and written, by a new process whenever the last one died of it."""
        deaths, last = 0, None
        while True:
            try:
                process = self._process(name, device)
                process.send((block, following, self._finished.part(block.number)))
                while True:
                    what, *details = process.receive()
                    if what == "media":
                        last = None
                        self._events.put(details[0])
                    elif what == "spent":
                        modality, media, seconds = details
                        self._events.put(Spent(modality, media, seconds, lane=name, settled=name in self._settled))
                    elif what == "at":
                        last = details
                    elif what == "failed":
                        raise details[0]
                    else:
                        self._settled.add(name)
                        return
            except ProcessDied as death:
                if self._abandoned:
                    return
                self._settled.discard(name)
                self._processes.pop(name).kill()
                if block.careful and last is not None and last[2] == 1:
                    place = (last[0], last[1])
                    block = replace(block, quarantined={**block.quarantined, place: f"the process that encoded it {death}"})
                else:
                    deaths += 1
                    # The first death may have come from outside; after the second the medium it died of is looked for.
                    block = replace(block, careful=deaths > 1)
                last = None
                if deaths >= _MAX_DEATHS:
                    raise WorkFailedError(
                        f"the worker {death} {deaths} times over block {block.number} (items {block.items[0].id!r} to {block.items[-1].id!r})",
                        hint=f"'{self._finished.log}' may hold its last words; too little memory is the usual cause: try fewer --workers, and "
                        "the same command goes on from there",
                    ) from None

    def _process(self, name: str, device: str) -> Process:
        if name not in self._processes:
            equipment = self._equipment.on(device)
            self._processes[name] = Process(
                _serve_blocks, equipment, self._worker_config, self._finished.log, log=self._finished.log
            )
        return self._processes[name]


def _serve_blocks(connection: Connection, equipment: Equipment, crew: WorkerConfig, log: Path) -> None:
    try:
        lane = LaneEncoder(equipment, crew, log)
        while True:
            block, following, path = connection.recv()
            lane.expect(block)
            if following is not None:
                lane.expect(following)
            write_part(path, lane.encode(block, lambda *words: connection.send(words)))
            connection.send(("done",))
    except CalmrlError as error:
        connection.send(("failed", error))
    except Exception as error:
        traceback.print_exc()
        said = "".join(traceback.format_exception_only(error)).strip()
        connection.send(("failed", WorkFailedError(f"a worker process failed: {said}", hint=f"'{log}' has the traceback")))
    # The parent ends this process when it has heard.
    connection.recv()
