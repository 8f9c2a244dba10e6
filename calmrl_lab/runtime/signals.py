"""Ctrl-C and SIGTERM as requests to stop: the current work is finished, then the process ends as if killed by the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from calmrl_lab.runtime import console


@contextmanager
def stopping_gently(under_way: str) -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; a second one interrupts at once. `under_way` names what is finished, as
    "the blocks under way".

    On leaving, KeyboardInterrupt (after Ctrl-C) or SystemExit 143 (after SIGTERM) is raised if the event was set. Outside the main
    thread signals are left alone.
    """
    event = threading.Event()
    received: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        event.set()
        console.note(f"stopping after {under_way} (again to stop at once); the same command goes on from there")

    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
