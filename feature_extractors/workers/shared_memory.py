"""Large arrays from one process to another without copying them through the pipe."""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np

# Below this a pipe is as fast: one system call instead of several.
_SMALL = 1 << 16


def send_array(connection: Connection, array: np.ndarray) -> None:
    """Through the pipe if small, else as a piece of memory that both processes see (Linux; elsewhere always through the pipe)."""
    if array.nbytes < _SMALL or not hasattr(os, "memfd_create") or array.dtype.hasobject:
        connection.send(array)
        return
    connection.send((array.dtype.str, array.shape))
    handle = os.memfd_create("calmrl")
    try:
        left = np.ascontiguousarray(array).data.cast("B")
        while left:
            left = left[os.write(handle, left) :]
        reduction.send_handle(connection, handle, None)
    finally:
        os.close(handle)


def receive_array(connection: Connection) -> np.ndarray:
    """What `send_array` sent at the other end. The memory goes when the array does."""
    received = connection.recv()
    if isinstance(received, np.ndarray):
        return received
    dtype, shape = received
    handle = reduction.recv_handle(connection)
    try:
        memory = mmap.mmap(handle, os.fstat(handle).st_size)
    finally:
        os.close(handle)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
