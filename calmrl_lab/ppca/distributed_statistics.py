"""Sufficient statistics summed over processes, each of which holds its own items: one all-reduce per pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calmrl_lab.ppca.statistics import PatternStatistics, Statistics
from calmrl_lab.runtime.distributed import from_all, processes, total


def agreed_shift(means: Sequence[Tensor] | None) -> list[Tensor]:
    """The shift that all processes use, so that their sums add up: the `means` of the first process that has any items."""
    found = from_all(None if means is None else [mean.cpu() for mean in means])
    return next(part for part in found if part is not None)


def pooled(own: Statistics) -> Statistics:
    """The statistics of the items of all processes, in every process; all must have the same shift (`agreed_shift`).

    A process holds one moment more than its own at a time, however many processes there are. Patterns of fewer items than
    coordinates, of which everybody kept the rows, stay rows.
    """
    if processes() == 1:
        return own
    held = from_all({observed: (sums.count, sums.moment is None) for observed, sums in own.patterns.items()})
    result = Statistics(own.dims, own.shift, own.device)
    for observed in sorted({pattern for part in held for pattern in part}, key=lambda pattern: sum(1 << j for j in pattern)):
        entries = [part[observed] for part in held if observed in part]
        count, size = sum(entry[0] for entry in entries), sum(own.dims[j] for j in observed)
        sums = own.patterns.get(observed) or PatternStatistics(
            observed, 0.0, torch.zeros(size, dtype=torch.float64, device=own.device)
        )
        weight_and_total = total(torch.cat([sums.total.new_tensor([sums.weight]), sums.total]))
        together = PatternStatistics(observed, count, weight_and_total[1:], weight=float(weight_and_total[0]))
        if count < size and all(rows_only for _, rows_only in entries):
            parts = from_all([rows.cpu() for rows in sums.rows])
            together.rows = [rows.to(own.device) for part in parts for rows in part]
        else:
            together.moment = total(sums.dense())
        together.settle()
        result.patterns[observed] = together
    return result
