"""Tiles of scores to counts: how many candidates beat, and how many tie with, the best positive of every row and column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError

TileScore = Callable[[slice, slice], Float[Tensor, "q g"]]
# 1,024 x 1,024 float32 are 4 MB: the tile stays in a CPU's cache. A GPU has no use for tiles that small.
CPU_TILE, GPU_TILE = 1024, 8192
# Scores that differ by less are tied: duplicates stay duplicates whatever the order in which float64 sums were taken.
TIE = 1e-12
# Above this share of a tile, its products are computed again as a whole instead of one by one.
_DENSE = 1 / 16
# Rows gathered at once to compute single products again: 2 x 2,048 rows of 512 float64 are 16 MB.
_GATHERED = 1 << 20


class Positives(Protocol):
    """Which candidates answer which query."""

    def tile(self, rows: slice, columns: slice) -> Bool[Tensor, "q g"] | None:
        """True where row and column belong together; None if they do nowhere in the tile."""


class SameOwner:
    """Rows of one owner (item) are each other's positives."""

    def __init__(self, left: Int[Tensor, " q"], right: Int[Tensor, " g"]) -> None:
        self._left, self._right = left, right
        self._ranges: dict[tuple[int, int, int], tuple[int, int]] = {}

    def tile(self, rows: slice, columns: slice) -> Bool[Tensor, "q g"] | None:
        # Owners usually ascend, so that most tiles of a large gallery can be told apart by their ends alone.
        low_left, high_left = self._ends(0, self._left, rows)
        low_right, high_right = self._ends(1, self._right, columns)
        if high_left < low_right or high_right < low_left:
            return None
        same = self._left[rows, None] == self._right[None, columns]
        return same if bool(same.any()) else None

    def _ends(self, side: int, owners: Tensor, place: slice) -> tuple[int, int]:
        key = (side, place.start, place.stop)
        if key not in self._ranges:
            part = owners[place]
            self._ranges[key] = (int(part.min()), int(part.max()))
        return self._ranges[key]


class Listed:
    """Positives listed query by query: those of query i are `indices[offsets[i]:offsets[i+1]]` (CSR)."""

    def __init__(self, offsets: Int[Tensor, " q_plus_1"], indices: Int[Tensor, " p"], candidates: int) -> None:
        falling = (
            len(offsets) == 0 or int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()) or int(offsets[-1]) != len(indices)
        )
        if falling or (len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < candidates)):
            raise CalmrlError(
                f"positives must be offsets [Q + 1] from 0 to the number of indices ({len(indices)}) and indices below {candidates}"
            )
        self._offsets, self._indices = offsets, indices

    def tile(self, rows: slice, columns: slice) -> Bool[Tensor, "q g"] | None:
        offsets = self._offsets[rows.start : rows.stop + 1]
        indices = self._indices[int(offsets[0]) : int(offsets[-1])]
        row = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
        inside = (indices >= columns.start) & (indices < columns.stop)
        if not bool(inside.any()):
            return None
        mask = torch.zeros(len(offsets) - 1, columns.stop - columns.start, dtype=torch.bool, device=offsets.device)
        mask[row[inside], indices[inside] - columns.start] = True
        return mask


@dataclass(frozen=True)
class Counts:
    """Of every row (or column): candidates above its best positive, others tied with it, positives; int64."""

    above: Int[Tensor, " n"]
    tied: Int[Tensor, " n"]
    own: Int[Tensor, " n"]

    @classmethod
    def zeros(cls, n: int, device: torch.device) -> Counts:
        return cls(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3)))

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(above, tied, own), with zeros where there is no positive."""
        without = self.own == 0
        above, tied = (t.masked_fill(without, 0).cpu().numpy() for t in (self.above, self.tied))
        return above, tied, self.own.cpu().numpy()


def tile_size(device: torch.device) -> int:
    return GPU_TILE if device.type == "cuda" else CPU_TILE


def tiles(rows: int, columns: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """All tiles, column blocks inside row blocks."""
    if tile < 1:
        raise CalmrlError(f"tile is {tile}, expected at least 1")
    for r in range(0, rows, tile):
        for c in range(0, columns, tile):
            yield slice(r, min(r + tile, rows)), slice(c, min(c + tile, columns))


def count_scores(
    score: TileScore, positives: Positives, rows: int, columns: int, device: torch.device, tile: int, tie: float
) -> tuple[Counts, Counts]:
    """Counts of rows and columns under any `score` of (row slice, column slice), read twice from the same tiles.

    Scores within `tie` of the best positive's are tied with it. Raises CalmrlError for NaN.
    """
    left, right = Counts.zeros(rows, device), Counts.zeros(columns, device)
    best_left, best_right = (torch.full((n,), -torch.inf, dtype=torch.float64, device=device) for n in (rows, columns))
    for r, c in tiles(rows, columns, tile):
        same = positives.tile(r, c)
        if same is not None:
            _raise_best(_checked(score(r, c)), same, best_left[r], best_right[c])
            left.own[r] += same.sum(dim=1)
            right.own[c] += same.sum(dim=0)
    for r, c in tiles(rows, columns, tile):
        _count_plain(_checked(score(r, c)), positives.tile(r, c), best_left[r], best_right[c], tie, left, right, r, c)
    return left, right


def count_products(
    left: Float[Tensor, "q d"], right: Float[Tensor, "g d"], positives: Positives, tile: int
) -> tuple[Counts, Counts]:
    """Counts of rows and columns under the inner product, as if every product were computed in float64.

    Products are taken in float32 and compared with a margin that covers their rounding; the few that fall inside it are
    computed again in float64. So the counts depend neither on tiles, nor on threads, nor on the BLAS library, and duplicates
    tie exactly. Scores within 1e-12 of the best positive's (times the largest norms) are tied with it.
    """
    device = left.device
    counts = Counts.zeros(len(left), device), Counts.zeros(len(right), device)
    if len(left) == 0 or len(right) == 0:
        return counts
    scale = float(left.double().norm(dim=1).amax() * right.double().norm(dim=1).amax())
    if not np.isfinite(scale):
        raise CalmrlError(
            "a score is not a number: the embeddings hold NaN or infinity",
            hint="calmrl-lab store verify, or train the run again",
        )
    tie = TIE * max(scale, np.finfo(np.float64).tiny)
    best = _best_products(left, right, positives, tile, counts)
    if left.dtype == torch.float64:
        for r, c in tiles(len(left), len(right), tile):
            _count_plain(left[r] @ right[c].T, positives.tile(r, c), best[0][r], best[1][c], tie, *counts, r, c)
        return counts
    margin = _rounding(left) * scale + tie
    for r, c in tiles(len(left), len(right), tile):
        scores = left[r] @ right[c].T
        same = positives.tile(r, c)
        near_rows = _count_clear(scores, best[0][r], margin, counts[0].above[r], 1)
        near_columns = _count_clear(scores, best[1][c], margin, counts[1].above[c], 0)
        if near_rows is None and near_columns is None:
            continue
        for side, near, (i, j) in (
            (0, near_rows, _near(scores, best[0][r], near_rows, margin, 1)),
            (1, near_columns, _near(scores, best[1][c], near_columns, margin, 0)),
        ):
            if near is None:
                continue
            place = (r, c)[side]
            which = (i, j)[side]
            if len(i) > _DENSE * scores.numel():
                exact = (left[r].double() @ right[c].double().T)[i, j]
            else:
                exact = _products(left[r], right[c], i, j)
            difference = exact - best[side][place][which]
            others = torch.ones_like(i, dtype=torch.bool) if same is None else ~same[i, j]
            counts[side].above[place].index_add_(0, which, (difference > tie).long())
            counts[side].tied[place].index_add_(0, which, ((difference.abs() <= tie) & others).long())
    return counts


def _rounding(like: Tensor) -> float:
    """Relative error of a float32 inner product that no product will exceed.

    8 sqrt(d) u is exceeded with a probability below 1e-13 (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, Theorem 2.4); what
    is seen is a tenth of it. Where products may be taken in TF32 or bfloat16, the unit roundoff u is theirs.
    """
    reduced = like.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    unit = 2.0**-8 if reduced else 2.0**-24
    return 8 * like.shape[1] ** 0.5 * unit


def _best_products(
    left: Tensor, right: Tensor, positives: Positives, tile: int, counts: tuple[Counts, Counts]
) -> tuple[Float[Tensor, " q"], Float[Tensor, " g"]]:
    """The float64 score of every row's and column's best positive, -inf without one; counts positives on the way."""
    best = tuple(torch.full((len(x),), -torch.inf, dtype=torch.float64, device=left.device) for x in (left, right))
    for r, c in tiles(len(left), len(right), tile):
        same = positives.tile(r, c)
        if same is None:
            continue
        counts[0].own[r] += same.sum(dim=1)
        counts[1].own[c] += same.sum(dim=0)
        i, j = same.nonzero(as_tuple=True)
        if len(i) > _DENSE * same.numel():
            _raise_best(left[r].double() @ right[c].double().T, same, best[0][r], best[1][c])
            continue
        exact = _products(left[r], right[c], i, j)
        best[0][r].scatter_reduce_(0, i, exact, "amax")
        best[1][c].scatter_reduce_(0, j, exact, "amax")
    return best[0], best[1]


def _raise_best(scores: Tensor, same: Tensor, best_rows: Tensor, best_columns: Tensor) -> None:
    positive = scores.double().masked_fill(~same, -torch.inf)
    torch.maximum(best_rows, positive.amax(dim=1), out=best_rows)
    torch.maximum(best_columns, positive.amax(dim=0), out=best_columns)


def _products(left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, " p"]:
    """Float64 inner products of the pairs (i, j), gathered in bounded memory."""
    step = max(1, _GATHERED // max(left.shape[1], 1))
    parts = [(left[a].double() * right[b].double()).sum(dim=1) for a, b in zip(i.split(step), j.split(step), strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=left.device)


def _count_clear(scores: Tensor, best: Tensor, margin: float, above: Tensor, dim: int) -> Int[Tensor, " n"] | None:
    """Add the scores beyond doubt above `best`; return how many are in doubt (a row or column), None if none is."""
    high = _outward(best + margin, torch.inf)
    low = _outward(best - margin, -torch.inf)
    sure = _number(torch.gt, scores, high, dim)
    above += sure
    doubtful = _number(torch.ge, scores, low, dim) - sure
    # Without a positive every score is above -inf, and nothing is asked of this row.
    doubtful.masked_fill_(torch.isneginf(best), 0)
    return doubtful if bool(doubtful.any()) else None


def _outward(bound: Tensor, towards: float) -> Float[Tensor, " n"]:
    """Float64 bounds as float32 bounds that are not tighter."""
    narrow = bound.float()
    return torch.nextafter(narrow, torch.full_like(narrow, towards))


def _number(compare: Callable[..., Tensor], scores: Tensor, bound: Tensor, dim: int) -> Int[Tensor, " n"]:
    # Comparing into floats and summing by a matrix product is four times faster than summing bools, and exact below 2^24.
    hits = compare(scores, bound.unsqueeze(dim), out=torch.empty_like(scores))
    ones = hits.new_ones(hits.shape[dim])
    return (hits @ ones if dim == 1 else ones @ hits).long()


def _near(scores: Tensor, best: Tensor, doubtful: Tensor | None, margin: float, dim: int) -> tuple[Tensor, Tensor]:
    """Positions (row, column) of the scores in doubt."""
    empty = torch.zeros(0, dtype=torch.int64, device=scores.device)
    if doubtful is None:
        return empty, empty
    lines = doubtful.nonzero().squeeze(1)
    part = scores.index_select(1 - dim, lines)
    high, low = (_outward(best[lines] + sign * margin, sign * torch.inf).unsqueeze(dim) for sign in (1, -1))
    i, j = ((part >= low) & (part <= high)).nonzero(as_tuple=True)
    return (lines[i], j) if dim == 1 else (i, lines[j])


def _count_plain(
    scores: Tensor,
    same: Tensor | None,
    best_rows: Tensor,
    best_columns: Tensor,
    tie: float,
    left: Counts,
    right: Counts,
    r: slice,
    c: slice,
) -> None:
    for counts, place, best, dim in ((left, r, best_rows.unsqueeze(1), 1), (right, c, best_columns.unsqueeze(0), 0)):
        level = (scores <= best + tie) & (scores >= best - tie)
        counts.above[place] += (scores > best + tie).sum(dim=dim)
        counts.tied[place] += (level if same is None else level & ~same).sum(dim=dim)


def _checked(scores: Tensor) -> Tensor:
    # A NaN compares false with everything and would rank first.
    if bool(torch.isnan(scores).any()):
        raise CalmrlError(
            "a score is not a number: the embeddings hold NaN", hint="calmrl-lab store verify, or train the run again"
        )
    return scores
