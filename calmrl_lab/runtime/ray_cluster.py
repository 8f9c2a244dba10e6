"""A Ray cluster to work on: the one that RAY_ADDRESS names, or one started on this machine for the time of the work."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from calmrl_lab.errors import CalmrlError, WorkFailedError, complaint, missing_extra

_ANSWER_SECONDS = 10.0


def require_ray() -> Any:
    """The module; an error naming the extra if it is not installed."""
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None
    return ray


def check_cluster() -> None:
    """CalmrlError if Ray is not installed, or nobody listens at the HOST:PORT of RAY_ADDRESS: Ray would try again for many minutes.

    Other forms of the address, such as `auto`, are for Ray to judge.
    """
    require_ray()
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise CalmrlError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {getattr(error, 'strerror', None) or error}",
            hint="start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone",
        ) from None


@contextmanager
def joined(cores: int | None) -> Iterator[Any]:
    """The module `ray`, connected: to the cluster that RAY_ADDRESS names, else to one started here with so many cores (None: all).

    A connection that the caller has already is used and left open. Raises CalmrlError where no cluster answers.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own:
        check_cluster()
        _connect(ray, cores)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, cores: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    mine = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    try:
        if address:
            ray.init(log_to_driver=False)
        else:
            ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    except Exception as error:
        where = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray could not be started"
        raise WorkFailedError(f"{where}: {complaint(error)}", hint="`ray status` says more; or use --engine local") from None
    finally:
        # Ray's own handlers end the process at once, whatever is under way.
        for number, handler in handlers.items():
            signal.signal(number, handler)
