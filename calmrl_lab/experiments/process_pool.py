"""Runs of an experiment: made, skipped where they are finished, several at a time, failures kept apart."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context

from calmrl_lab.experiments.job import ONE_THREAD, Job, Outcome, died, perform, single_thread

# Seconds between two looks at whether the experiment is still there.
_LOOK = 0.5


def begin_worker(parent: int) -> None:
    """What a process of a pool does first: it must not go on writing runs that a resumed experiment makes again.

    `parent` is the process of the experiment, which may be gone before this one asks the system who its parent is.

    Ctrl-C in a terminal reaches every process; what becomes of the run under way is for the parent to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)
    single_thread()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process once its parent has gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def outcomes_here(
    todo: Sequence[Job], workers: int, stop: threading.Event, work: Callable[[Job], Outcome] = perform
) -> Iterator[tuple[Job, Outcome]]:
    """What became of each run in processes of this machine, in the order in which they end; once `stop` is set no further run begins.

    A worker that dies (killed for memory, say) takes its pool with it: what was under way is then made again alone, and only a run that
    dies alone has failed.
    """
    os.environ.update(ONE_THREAD)
    rest = deque(todo)
    while rest and not stop.is_set():
        for job in (yield from _in_one_pool(rest, workers, stop, work)):
            if (yield from _in_one_pool(deque([job]), 1, stop, work)):
                yield job, died(job, "it was killed, or ran out of memory")


def _in_one_pool(
    rest: deque[Job], workers: int, stop: threading.Event, work: Callable[[Job], Outcome]
) -> Generator[tuple[Job, Outcome], None, list[Job]]:
    """Takes runs from the front of `rest` and yields what became of them, until none is left, `stop` is set or a worker has died; returns
    the runs that were under way when one died."""
    waiting: dict[Future[Outcome], Job] = {}
    others = set(active_children())
    context, parent = get_context("spawn"), (os.getpid(),)
    with ProcessPoolExecutor(min(workers, len(rest)), mp_context=context, initializer=begin_worker, initargs=parent) as pool:
        try:
            while waiting or (rest and not stop.is_set()):
                # No more than can run: what is handed to a pool cannot be taken back.
                while rest and len(waiting) < workers and not stop.is_set():
                    waiting[pool.submit(work, rest[0])] = rest[0]
                    rest.popleft()
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                broken = False
                for future in done:
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    except Exception as error:  # what a worker sent could not be read
                        outcome = died(waiting[future], error)
                    yield waiting.pop(future), outcome
                if broken:
                    return list(waiting.values())
        except BrokenProcessPool:  # while runs were handed out
            return list(waiting.values()) or [rest.popleft()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.terminate()
            raise
    return []
