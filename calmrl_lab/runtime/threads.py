"""How many CPU threads work takes: one, unless more are asked for. One rule for every command and for Python.

Several threads split sums in other places, so that trained numbers would depend on the machine and on what else runs there; and beside a busy
core they wait for each other (the matrices here are small).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from calmrl_lab.errors import CalmrlError

# What OpenMP and the BLAS libraries read when they are loaded.
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_asked: int | None = None


def ask(threads: int) -> None:
    """Take `threads` for all work from now on, and for libraries and processes that this process will start. Raises CalmrlError below one.

    >>> ask(1)
    >>> count()
    1
    """
    global _asked
    if threads < 1:
        raise CalmrlError(f"work needs at least one thread, got {threads}")
    _asked = threads
    os.environ.update(dict.fromkeys(ENVIRONMENT, str(threads)))


def count() -> int:
    """What was asked for, what OMP_NUM_THREADS says where nothing was, or one."""
    if _asked is not None:
        return _asked
    said = os.environ.get(ENVIRONMENT[0], "")
    return int(said) if said.isdecimal() and int(said) > 0 else 1


@contextmanager
def limited() -> Iterator[None]:
    """torch, BLAS and OpenMP take `count()` threads inside, and as many as before afterwards; also a decorator."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count())
    try:
        with threadpool_limits(count()):
            yield
    finally:
        torch.set_num_threads(before)
