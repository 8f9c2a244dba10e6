"""Rows through a model in pieces that fit the device: the piece shrinks when memory runs out, and stays small then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_lab.errors import CalmrlError, WorkFailedError

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16")
# What the libraries below torch say when the device is full; torch itself raises OutOfMemoryError.
_FULL = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "unable to find an engine to execute this computation")


class Runs:
    """Arrays of equal row shape, end to end; nothing is copied before a slice is asked for."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, piece: slice) -> np.ndarray:
        start, stop, _ = piece.indices(len(self))
        parts = []
        for place in range(int(np.searchsorted(self._ends, start, side="right")), len(self._arrays)):
            first = int(self._ends[place]) - len(self._arrays[place])
            if first >= stop:
                break
            parts.append(self._arrays[place][max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


# On a CPU large pieces are no faster (EVA-g takes .19 to .20 s a frame and block in pieces of 1 to 32 frames), and small ones show how far it is.
_CPU_ROWS = 4


class Pieces:
    """Runs a function over rows, at most `size` at once. Out of memory halves `size` for good; a single row that fails is an error.

    `observer` is called with the number of rows of each piece that is through.
    """

    def __init__(self, size: int, device: str) -> None:
        self.size = size
        self.device = device
        self.observer: Callable[[int], None] | None = None

    @classmethod
    def of(cls, given: int | None, rows: int, device: str) -> Pieces:
        """Pieces of the size that was asked for, or of `rows` on a GPU and a sixteenth of that, at least four, on a CPU."""
        return cls(given or (max(_CPU_ROWS, rows // 16) if device == "cpu" else rows), device)

    def run(self, function: Callable[..., Tensor], *columns: np.ndarray | Runs) -> np.ndarray:
        """`function` of equally long pieces of `columns` (moved to the device), stacked; float32 on the CPU.

        Results stay on the device until the last piece, so that the next one is gathered and copied while it still works on the one
        before.
        """
        import torch

        total, start = len(columns[0]), 0
        done: list[Tensor] = []
        while start < total:
            stop = min(start + self.size, total)
            piece = self._fitting(function, [column[start:stop] for column in columns])
            if piece is None:
                if stop - start == 1:
                    raise WorkFailedError(
                        f"one row does not fit the memory of {self.device}",
                        hint="use --device cpu, or a device with more memory",
                    )
                self.size = (stop - start) // 2
                torch.cuda.empty_cache()
            else:
                done.append(piece)
                if self.observer is not None:
                    self.observer(stop - start)
                start = stop
        return torch.cat([piece.cpu() for piece in done]).numpy()

    def _fitting(self, function: Callable[..., Tensor], columns: list[np.ndarray]) -> Tensor | None:
        """The result of one piece, or None for want of memory. What the attempt held is free again once this has returned."""
        import torch

        try:
            with torch.inference_mode():
                return function(*map(self._move, columns)).float()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL):
                return None
            raise

    def _move(self, rows: np.ndarray) -> Tensor:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(rows))
        if self.device.startswith("cuda"):
            # Pinned memory lets the copy overlap with the work queued before it.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def place(model: nn.Module, device: str, precision: str) -> nn.Module:
    """The model on its device.

    `bf16` stores the weights of linear layers so. Everything that adds up over the layers stays float32: norms, softmax, and the residual
    stream, which is why convolutions (the first layer of a vision tower, whose weights decide the stream's type) keep float32 weights.
    """
    import torch

    if precision not in PRECISIONS:
        raise CalmrlError(f"unknown precision '{precision}'", hint=f"known: {', '.join(PRECISIONS)}")
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)
    return model.to(device)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """The context a model of this precision runs in. `fp32` means it: no products of shortened factors (TF32), whatever is set outside."""
    import torch

    if precision == "fp32":
        return _exact()
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16)


@contextmanager
def _exact() -> Iterator[None]:
    import torch

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
