"""Tiles of scores to counts: how many candidates are above, and how many are tied with, the best positive of every row and column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.progress import progress

Pairs = tuple[Tensor, Tensor]
TileScore = Callable[[slice, slice], Float[Tensor, "q g"]]
# 1,024 x 1,024 float32 are 4 MB: the tile stays in a CPU's cache. A GPU has no use for tiles that small.
CPU_TILE, GPU_TILE = 1024, 8192
# Scores that differ by less are tied: duplicates stay duplicates whatever the order in which float64 sums were taken.
TIE = 1e-12
# Above this share of a tile, its products are computed again as a whole instead of one by one.
_DENSE = 1 / 16
# Numbers gathered at once to compute single products again: 2 x 512 rows of 512 float64 are 4 MB.
_GATHERED = 1 << 18


class SameOwner:
    """Rows of one owner (item) are each other's positives."""

    def __init__(self, left: Int[Tensor, " q"], right: Int[Tensor, " g"]) -> None:
        self._left, self._right = left, right
        self._sorted: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def pairs(self, rows: slice, columns: slice) -> Pairs | None:
        key = (columns.start, columns.stop)
        if key not in self._sorted:
            ordered, order = self._right[columns].sort()
            self._sorted[key] = (ordered, order)
        ordered, order = self._sorted[key]
        asking = self._left[rows].contiguous()
        first, last = (torch.searchsorted(ordered, asking, right=right) for right in (False, True))
        counts = last - first
        total = int(counts.sum())
        if total == 0:
            return None
        i = torch.repeat_interleave(torch.arange(len(asking), device=asking.device), counts)
        # The n-th pair of a row is its n-th match in sorted order.
        nth = torch.arange(total, device=asking.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return i, order[torch.repeat_interleave(first, counts) + nth]

    def among(self, row: Int[Tensor, " p"], column: Int[Tensor, " p"]) -> Bool[Tensor, " p"]:
        return self._left[row] == self._right[column]


@dataclass(frozen=True)
class Counts:
    """Of every row (or column), int64: candidates above its best positive, candidates tied with it that are no positives, positives, and how
    many of these are as good as the best."""

    above: Int[Tensor, " n"]
    tied: Int[Tensor, " n"]
    own: Int[Tensor, " n"]
    best: Int[Tensor, " n"]

    @classmethod
    def zeros(cls, n: int, device: torch.device) -> Counts:
        return cls(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(4)))

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(above, tied, own, best), with zeros where there is no positive."""
        without = self.own == 0
        above, tied = (t.masked_fill(without, 0).cpu().numpy() for t in (self.above, self.tied))
        return above, tied, self.own.cpu().numpy(), self.best.cpu().numpy()


def tile_size(device: torch.device) -> int:
    return GPU_TILE if device.type == "cuda" else CPU_TILE


def tiles(rows: int, columns: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """All tiles, column blocks inside row blocks, as progress."""
    if tile < 1:
        raise CalmrlError(f"tile is {tile}, expected at least 1")
    with progress("ranks", -(-rows // tile) * -(-columns // tile), "tiles") as task:
        for r in range(0, rows, tile):
            for c in range(0, columns, tile):
                yield slice(r, min(r + tile, rows)), slice(c, min(c + tile, columns))
                task.advance()


def count_scores(
    score: TileScore, positives: SameOwner, rows: int, columns: int, device: torch.device, tile: int, tie: float
) -> tuple[Counts, Counts]:
    """Counts of rows and columns under any `score` of (row slice, column slice), read twice from the same tiles.

    Scores within `tie` of the best positive's are tied with it. Raises CalmrlError for NaN.
    """
    left, right = Counts.zeros(rows, device), Counts.zeros(columns, device)
    best_left, best_right = (torch.full((n,), -torch.inf, dtype=torch.float64, device=device) for n in (rows, columns))
    for r, c in tiles(rows, columns, tile):
        pairs = positives.pairs(r, c)
        if pairs is not None:
            _note_positives(pairs, _checked(score(r, c))[pairs].double(), (left, right), (best_left, best_right), r, c)
    for r, c in tiles(rows, columns, tile):
        _count_plain(_checked(score(r, c)), positives.pairs(r, c), best_left[r], best_right[c], tie, left, right, r, c)
    return left, right


def count_products(
    left: Float[Tensor, "q d"], right: Float[Tensor, "g d"], positives: SameOwner, tile: int
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
    scale = 1.0001 * float(left.norm(dim=1).amax()) * float(right.norm(dim=1).amax())
    if not np.isfinite(scale):
        raise CalmrlError(
            "a score is not a number: the embeddings hold NaN or infinity",
            hint="calmrl-lab store verify, or train the run again",
        )
    tie = TIE * max(scale, np.finfo(np.float64).tiny)
    best, known = _best_products(left, right, positives, tile, counts)
    if left.dtype == torch.float64:
        for r, c in tiles(len(left), len(right), tile):
            _count_plain(left[r] @ right[c].T, positives.pairs(r, c), best[0][r], best[1][c], tie, *counts, r, c)
        return counts
    for i, j, exact in known:
        for side, which in ((0, i), (1, j)):
            counts[side].best.index_add_(0, which, (exact >= best[side][which] - tie).long())
    margin = _rounding(left) * scale + tie
    for r, c in tiles(len(left), len(right), tile):
        scores = left[r] @ right[c].T
        pairs = positives.pairs(r, c)
        for side, place, dim in ((0, r, 1), (1, c, 0)):
            doubtful = _count_clear(scores, best[side][place], margin, counts[side].above[place], pairs, dim)
            if doubtful is None:
                continue
            i, j = _near(scores, best[side][place], doubtful, margin, dim)
            if len(i) > _DENSE * scores.numel():
                exact = (left[r].double() @ right[c].double().T)[i, j]
            else:
                exact = _products(left[r], right[c], i, j)
            which = (i, j)[side]
            difference = exact - best[side][place][which]
            others = ~positives.among(i + r.start, j + c.start)
            counts[side].above[place].index_add_(0, which, (difference > tie).long())
            counts[side].tied[place].index_add_(0, which, ((difference.abs() <= tie) & others).long())
    return counts


def _rounding(like: Tensor) -> float:
    """Relative error of a float32 inner product that no product will exceed.

    8 sqrt(d) u is exceeded with a probability below 1e-13 (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, Theorem 2.4); what
    is seen is a tenth of it. Where products may be taken in TF32 or bfloat16 (`torch.set_float32_matmul_precision`, on processors and
    on GPUs), the unit roundoff u is theirs.
    """
    backend = torch.backends.cuda if like.device.type == "cuda" else torch.backends.mkldnn
    asked = backend.matmul.fp32_precision
    precision = torch.backends.fp32_precision if asked == "none" else asked  # type: ignore[attr-defined]
    unit = 2.0**-24 if precision in ("none", "ieee") else 2.0**-8
    return 8 * like.shape[1] ** 0.5 * unit


def _best_products(
    left: Tensor, right: Tensor, positives: SameOwner, tile: int, counts: tuple[Counts, Counts]
) -> tuple[tuple[Float[Tensor, " q"], Float[Tensor, " g"]], list[tuple[Tensor, Tensor, Tensor]]]:
    """The float64 score of every row's and column's best positive, -inf without one, and (row, column, score) of all positives, which are
    counted on the way."""
    best = tuple(torch.full((len(x),), -torch.inf, dtype=torch.float64, device=left.device) for x in (left, right))
    known: list[tuple[Tensor, Tensor, Tensor]] = []
    for r, c in tiles(len(left), len(right), tile):
        pairs = positives.pairs(r, c)
        if pairs is None:
            continue
        if len(pairs[0]) > _DENSE * (r.stop - r.start) * (c.stop - c.start):
            exact = (left[r].double() @ right[c].double().T)[pairs]
        else:
            exact = _products(left[r], right[c], *pairs)
        _note_positives(pairs, exact, counts, best, r, c)
        known.append((pairs[0] + r.start, pairs[1] + c.start, exact))
    return (best[0], best[1]), known


def _note_positives(
    pairs: Pairs,
    exact: Float[Tensor, " p"],
    counts: tuple[Counts, Counts],
    best: tuple[Tensor, ...],
    r: slice,
    c: slice,
) -> None:
    for side, place in ((0, r), (1, c)):
        best[side][place].scatter_reduce_(0, pairs[side], exact, "amax")
        counts[side].own[place].index_add_(0, pairs[side], torch.ones_like(pairs[side]))


def _products(left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, " p"]:
    """Float64 inner products of the pairs (i, j), gathered in bounded memory."""
    step = max(1, _GATHERED // max(left.shape[1], 1))
    parts = [(left[a].double() * right[b].double()).sum(dim=1) for a, b in zip(i.split(step), j.split(step), strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=left.device)


def _count_clear(
    scores: Tensor, best: Tensor, margin: float, above: Tensor, pairs: Pairs | None, dim: int
) -> Int[Tensor, " n"] | None:
    """Add the scores beyond doubt above `best`; return how many others are in doubt (a row or column), None if none is.

    Positives are never in doubt: none is above the best, and they do not tie with themselves.
    """
    high = _outward(best + margin, torch.inf)
    low = _outward(best - margin, -torch.inf)
    sure = _number(torch.gt, scores, high, dim)
    above += sure
    doubtful = _number(torch.ge, scores, low, dim) - sure
    if pairs is not None:
        line, own = pairs[1 - dim], scores[pairs]
        doubtful.index_add_(0, line, -((own >= low[line]) & (own <= high[line])).long())
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


def _near(scores: Tensor, best: Tensor, doubtful: Tensor, margin: float, dim: int) -> Pairs:
    """Positions (row, column) of the scores in doubt."""
    lines = doubtful.nonzero().squeeze(1)
    part = scores.index_select(1 - dim, lines)
    high, low = (_outward(best[lines] + sign * margin, sign * torch.inf).unsqueeze(dim) for sign in (1, -1))
    i, j = ((part >= low) & (part <= high)).nonzero(as_tuple=True)
    return (lines[i], j) if dim == 1 else (i, lines[j])


def _count_plain(
    scores: Tensor,
    pairs: Pairs | None,
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
        if pairs is not None:
            counts.best[place].index_add_(0, pairs[1 - dim], level[pairs].long())
            level[pairs] = False
        counts.tied[place] += level.sum(dim=dim)


def _checked(scores: Tensor) -> Tensor:
    # A NaN compares false with everything and would rank first.
    if bool(torch.isnan(scores).any()):
        raise CalmrlError(
            "a score is not a number: the embeddings hold NaN", hint="calmrl-lab store verify, or train the run again"
        )
    return scores
