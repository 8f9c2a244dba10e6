"""Computation on one thread, for sums whose order must not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works on one thread inside, and on as many as before afterwards.

    Several threads split a sum in other places (differences of 1e-6 in a feature), so the bytes of a store would depend on how many
    workers made it. Many items at once are the business of worker processes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
