"""Training in several processes: batches gathered with their gradient, statistics summed, gradients averaged.

Each process encodes its share of a batch, gathers everybody's embeddings and computes the loss of the whole batch; averaging the
gradients (average_gradients, DistributedDataParallel or Lightning Fabric) then gives those of one process with that batch. All of this does
nothing in a process that is alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Batch(NamedTuple):
    """What an objective is called with."""

    embeddings: Float[Tensor, "b k d"]
    mask: Bool[Tensor, "b k"]
    imputed: Float[Tensor, "b k d"] | None = None
    groups: Int[Tensor, " b"] | None = None


@contextmanager
def together(device: torch.device) -> Iterator[torch.device]:
    """Join the process group that `torchrun` describes in the environment, for the time of the body; without one, or in one, nothing changes.

    Gives the device of this process: on GPUs, the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """True in the one process that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many processes train together; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """The rows [b, ...] of all processes, by rank: [processes * b, ...]. All must bring equally many (see `gather_batch`).

    The gradient of a process's rows is the sum of what all processes find for them: if all compute one and the same loss of the gathered
    rows, that is `processes` times its gradient, and averaging parameter gradients over processes makes it whole.
    """
    if processes() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def gather_batch(own: Batch, size: int) -> Batch:
    """The batch of `size` items of which every process brings its share, by rank; only the embeddings carry a gradient.

    Shares are of size / processes items, rounded up, and the last ones shorter or empty. What all see is what one process alone would see,
    in the same order: random draws come out the same, too.
    """
    if processes() == 1:
        return own
    padded = _pad(own, -(-size // processes()))
    with torch.no_grad():
        mask = gather(padded.mask.to(torch.uint8)).bool()
        imputed = None if padded.imputed is None else gather(padded.imputed.detach())
        groups = None if padded.groups is None else gather(padded.groups)
    whole = Batch(gather(padded.embeddings), mask, imputed, groups)
    # Shares are filled from the front, so that all of the padding is at the end.
    return Batch(*(None if part is None else part[:size] for part in whole))  # type: ignore[arg-type]


def _pad(batch: Batch, size: int) -> Batch:
    """`batch` with zeros appended until it has `size` items."""
    lacking = size - len(batch.mask)
    if lacking <= 0:
        return batch

    def longer(part: Tensor | None) -> Tensor | None:
        return None if part is None else torch.cat([part, part.new_zeros(lacking, *part.shape[1:])])

    return Batch(*(longer(part) for part in batch))  # type: ignore[arg-type]


def from_all(value: Any) -> list[Any]:
    """The Python objects of all processes, by rank."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value)
    return found


def first_says(value: Any) -> Any:
    """The Python object of the first process, in all processes: for decisions that must not differ by a rounding."""
    if processes() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """The sum over all processes: for counts, losses and the sufficient statistics of an imputer."""
    if processes() == 1:
        return values
    result = values.clone()
    dist.all_reduce(result)
    return result


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, in one message; a missing one counts as zero."""
    count = processes()
    if count == 1:
        return
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in moving:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    by_kind: dict[torch.dtype, list[Tensor]] = {}
    for parameter in moving:
        assert parameter.grad is not None
        by_kind.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_kind.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= count
        for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        summed = grad.contiguous().clone()
        dist.all_reduce(summed)
        return summed.narrow(0, rank() * ctx.count, ctx.count)
