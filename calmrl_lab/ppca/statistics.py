"""Sufficient statistics of embeddings with gaps: count, sum and second moment of every pattern, which are all that EM needs.

Rows enter once; everything after that costs the same for a thousand items and for a billion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import blas
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.errors import CalmrlError

_BLOCK = 8192
# Rows are kept while there are fewer than this share of D: up to there two products with them cost less than one with the moment.
_ROWS_BELOW = 0.4


@dataclass
class PatternStatistics:
    """Sums over the items that show exactly the modalities `observed`, D coordinates in all, after subtraction of the shift.

    The second moment is the matrix `moment` [D, D] plus the Gram of `rows`, a list of [n, D]: while a pattern has few items
    beside D there are only rows, as a product with a [D, q] matrix is cheaper then, and so is the memory.
    `total` and moment may be weighted; `weight` is the sum of the weights, and equals `count` where there are none. Weighted rows
    are multiplied by the `roots` of their weights, a list of [n]; it is empty where every row counts once.
    """

    observed: tuple[int, ...]
    count: float
    total: Float[Tensor, " d"]
    moment: Float[Tensor, "d d"] | None = None
    rows: list[Float[Tensor, "n d"]] = field(default_factory=list)
    roots: list[Float[Tensor, " n"]] = field(default_factory=list)
    weight: float = -1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            self.weight = self.count

    def times(self, matrix: Float[Tensor, "d q"]) -> Float[Tensor, "d q"]:
        """Second moment times `matrix`."""
        if self.moment is None:
            result = torch.zeros_like(matrix)
        else:
            result = thin_product(self.moment, matrix)
        for rows in self.rows:
            result = torch.addmm(result, rows.T, rows @ matrix)
        return result

    def dense(self) -> Float[Tensor, "d d"]:
        """The second moment as a matrix."""
        size = len(self.total)
        result = self.total.new_zeros(size, size) if self.moment is None else self.moment.clone()
        for rows in self.rows:
            add_gram(result, rows)
        if self.rows:
            mirror_lower(result)
        return result

    def diagonal(self) -> Float[Tensor, " d"]:
        """The diagonal of the second moment."""
        result = torch.zeros_like(self.total) if self.moment is None else self.moment.diagonal().clone()
        for rows in self.rows:
            result += rows.square().sum(dim=0)
        return result

    def settle(self) -> None:
        """Give up the rows for the moment once there are too many of them, and keep few rows as one block.

        A stream in small blocks thus pays for a new moment only now and then; in between, a pattern has both.
        """
        if sum(len(rows) for rows in self.rows) >= _ROWS_BELOW * len(self.total):
            self.moment, self.rows, self.roots = self.dense(), [], []
        elif len(self.rows) > 1:
            self.rows, self.roots = [torch.cat(self.rows)], [torch.cat(self.roots)] if self.roots else []

    def take_in(self, other: PatternStatistics) -> None:
        """Add the items of `other`, of the same pattern and about the same shift."""
        self.count += other.count
        self.weight += other.weight
        self.total = self.total + other.total
        if other.moment is not None:
            self.moment = other.moment if self.moment is None else self.moment + other.moment
        if self.roots or other.roots:
            self.roots = [*self._roots(), *other._roots()]
        self.rows = [*self.rows, *other.rows]
        self.settle()

    def _roots(self) -> list[Float[Tensor, " n"]]:
        return self.roots or [rows.new_ones(len(rows)) for rows in self.rows]

    def scaled(self, factor: float) -> PatternStatistics:
        """Every item counted `factor` times."""
        return PatternStatistics(
            self.observed,
            self.count * factor,
            self.total * factor,
            None if self.moment is None else self.moment * factor,
            [rows * factor**0.5 for rows in self.rows],
            [roots * factor**0.5 for roots in self._roots()],
            self.weight * factor,
        )

    def moved(self, move: Float[Tensor, " d"]) -> PatternStatistics:
        """The same items, each with `move` added. Rows stay rows."""
        held = list(zip(self.rows, self._roots(), strict=True))
        moment = self.moment
        if moment is not None:
            # Of the items that are in the moment, not of those in rows.
            total = self.total - sum(rows.T @ roots for rows, roots in held)
            weight = self.weight - sum(float(roots.square().sum()) for _, roots in held)
            cross = torch.outer(total, move)
            moment = moment + cross + cross.T + weight * torch.outer(move, move)
        rows = [torch.addr(rows, roots, move) for rows, roots in held]
        return PatternStatistics(
            self.observed, self.count, self.total + self.weight * move, moment, rows, list(self.roots), self.weight
        )


class Statistics:
    """Statistics of every pattern of a data set, in coordinates shifted by `shift` (k of [d_m]).

    The shift keeps the moments well scaled when means are large beside the spread; it is fixed when the first rows enter, and
    cancels from every result. Float32 and float16 rows are multiplied in float32 blocks and summed in float64 (relative error
    about 1e-7); float64 rows in float64 throughout. Addition, merging and scaling are exact up to rounding, so shards, streams
    and forgetting are sums.
    """

    def __init__(self, dims: Sequence[int], shift: Sequence[Tensor], device: torch.device | None = None) -> None:
        self.dims = tuple(dims)
        # Devices without float64 (MPS) accumulate at home.
        self.device = device if device is not None and device.type in ("cpu", "cuda") else torch.device("cpu")
        self.shift = [value.to(self.device, torch.float64) for value in shift]
        self.patterns: dict[tuple[int, ...], PatternStatistics] = {}
        # Orthonormal bases (k of [d_m, r_m]) whose coordinates these statistics are in; None: of the features themselves.
        self.bases: Sequence[Float[Tensor, "d r"]] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """d_m of every modality: `dims`, unless the statistics are in the coordinates of `bases`."""
        return self.dims if self.bases is None else tuple(len(basis) for basis in self.bases)

    def along(self, bases: Sequence[Float[Tensor, "d r"]]) -> Statistics:
        """The same items in the coordinates of `bases`, which span them; all patterns must hold rows."""
        result = Statistics([basis.shape[1] for basis in bases], self.shift, self.device)
        result.bases = bases
        for observed, sums in self.patterns.items():
            assert sums.moment is None, "only rows can be projected without a D x D matrix"
            sizes = [self.dims[j] for j in observed]
            rows = [
                torch.cat([part @ bases[j] for j, part in zip(observed, block.split(sizes, dim=1), strict=True)], dim=1)
                for block in sums.rows
            ]
            total = torch.cat([part @ bases[j] for j, part in zip(observed, sums.total.split(sizes), strict=True)])
            result.patterns[observed] = replace(sums, total=total, rows=rows, roots=list(sums.roots))
        return result

    def features(self, parts: Sequence[Float[Tensor, r * q]]) -> list[Float[Tensor, d * q]]:
        """Vectors or columns (k of [r_m, ...]) in the coordinates of these statistics as vectors of features (without the shift)."""
        return list(parts) if self.bases is None else [basis @ part for basis, part in zip(self.bases, parts, strict=True)]

    @classmethod
    def of(cls, data: Observations, shift: Sequence[Tensor] | None = None, block: int = _BLOCK) -> Statistics:
        """Statistics of `data`; the shift defaults to the mean of the observed entries of every modality."""
        statistics = cls(data.dims, observed_means(data) if shift is None else shift, data.device)
        statistics.add(data, block)
        return statistics

    def add(self, data: Observations, block: int = _BLOCK, weights: Float[Tensor, " n"] | None = None) -> None:
        """Add the rows of `data`, each counted `weights` times; the all-missing pattern carries nothing and is left out."""
        if data.dims != self.dims:
            raise CalmrlError(f"embeddings have dimensions {list(data.dims)}, these statistics are of {list(self.dims)}")
        for pattern in data.patterns():
            if pattern.observed:
                self._insert(self._sums(data, pattern, block, weights))

    def _sums(self, data: Observations, pattern: Pattern, block: int, weights: Tensor | None) -> PatternStatistics:
        double = all(data.values[j].dtype == torch.float64 for j in pattern.observed)
        kind = torch.float64 if double else torch.float32
        size = sum(self.dims[j] for j in pattern.observed)
        keep_rows = len(pattern.rows) < _ROWS_BELOW * size
        total = torch.zeros(size, dtype=torch.float64, device=self.device)
        sums = PatternStatistics(pattern.observed, float(len(pattern.rows)), total)
        if weights is not None:
            sums.weight = float(weights[pattern.rows].sum())
        if not keep_rows:
            sums.moment = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for rows in torch.split(pattern.rows, block):
            values = self._shifted_rows(data, pattern.observed, rows, kind)
            if weights is not None:
                roots = weights[rows].to(self.device, kind).sqrt()
                values *= roots.unsqueeze(1)
                sums.total += (values * roots.unsqueeze(1)).sum(dim=0, dtype=torch.float64)
                if sums.moment is None:
                    sums.roots.append(roots.double())
            else:
                sums.total += values.sum(dim=0, dtype=torch.float64)
            if sums.moment is None:
                sums.rows.append(values.double())
            else:
                add_gram(sums.moment, values)
        if sums.moment is not None:
            mirror_lower(sums.moment)
        return sums

    def _shifted_rows(
        self, data: Observations, observed: tuple[int, ...], rows: Tensor, kind: torch.dtype
    ) -> Float[Tensor, "n d"]:
        """The modalities `observed` of the items at `rows`, side by side, minus the shift."""
        values = torch.empty(len(rows), sum(self.dims[j] for j in observed), dtype=kind, device=self.device)
        for j, part in zip(observed, values.split([self.dims[j] for j in observed], dim=1), strict=True):
            # The shift is representable in float32, so that this difference is as exact as the input.
            chosen = data.values[j].index_select(0, rows).to(self.device, kind)
            torch.sub(chosen, self.shift[j].to(kind), out=part)
        return values

    def _insert(self, sums: PatternStatistics) -> None:
        held = self.patterns.get(sums.observed)
        if held is None:
            self.patterns[sums.observed] = sums
            sums.settle()
            # One order whatever came first, so that sums over patterns are reproducible.
            self.patterns = dict(sorted(self.patterns.items(), key=lambda entry: sum(1 << j for j in entry[0])))
            return
        held.take_in(sums)

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of both data sets together, in the coordinates of `self`."""
        if other.dims != self.dims:
            raise CalmrlError(f"statistics of dimensions {list(self.dims)} and {list(other.dims)} cannot be merged")
        result = Statistics(self.dims, self.shift, self.device)
        result.bases = self.bases
        for part in (self, other._shifted(self.shift)):
            for sums in part.patterns.values():
                result._insert(replace(sums, rows=list(sums.rows), roots=list(sums.roots)))
        return result

    def scaled(self, factor: float) -> Statistics:
        """Every item counted `factor` times: below 1 the past is forgotten, and `scaled(f).merged(new)` is the on-line form."""
        if not 0 < factor < float("inf"):
            raise CalmrlError(f"statistics can be scaled by a positive factor only (got {factor})")
        result = Statistics(self.dims, self.shift, self.device)
        result.bases = self.bases
        result.patterns = {observed: sums.scaled(factor) for observed, sums in self.patterns.items()}
        return result

    def _shifted(self, shift: Sequence[Tensor]) -> Statistics:
        """The same statistics about another shift."""
        if all(torch.equal(mine, theirs.to(mine)) for mine, theirs in zip(self.shift, shift, strict=True)):
            return self
        result = Statistics(self.dims, shift, self.device)
        for observed, sums in self.patterns.items():
            result.patterns[observed] = sums.moved(torch.cat([self.shift[j] - result.shift[j] for j in observed]))
        return result

    def co_observed(self) -> Float[np.ndarray, "k k"]:
        """How many items show both modalities of every pair (the diagonal: how many show the modality)."""
        k = len(self.dims)
        counts = np.zeros((k, k))
        for observed, sums in self.patterns.items():
            counts[np.ix_(observed, observed)] += sums.count
        return counts

    @property
    def bytes(self) -> int:
        """Memory held by sums, moments and rows, with the roots of their weights."""
        held = [t for s in self.patterns.values() for t in (s.total, s.moment, *s.rows, *s.roots) if t is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def thin_product(matrix: Float[Tensor, "d e"], thin: Float[Tensor, "e q"]) -> Float[Tensor, "d q"]:
    """matrix @ thin for few columns. The BLAS of NumPy does this up to 1.6 times faster than that of torch, and EM does little
    else."""
    if matrix.device.type != "cpu":
        return matrix @ thin
    # What is not finite is refused where EM looks at its likelihood.
    with np.errstate(all="ignore"):
        return torch.from_numpy(matrix.numpy() @ thin.numpy())


def observed_means(data: Observations, block: int = 65536) -> list[Float[Tensor, " d"]]:
    """Mean of the observed entries of every modality, float64 sums, rounded to float32 where that is finite; zero if none is
    observed."""
    means = []
    for index, value in enumerate(data.values):
        total = torch.zeros(value.shape[1], dtype=torch.float64)
        shown = torch.nonzero(data.mask[:, index]).squeeze(1)
        for rows in torch.split(shown, block):
            part = value.index_select(0, rows)
            total += part.sum(dim=0, dtype=torch.float64 if part.device.type != "mps" else torch.float32).cpu()
        mean = total / max(len(shown), 1)
        rounded = mean.float().double()
        means.append(torch.where(torch.isfinite(rounded), rounded, mean))
    return means


def add_gram(moment: Float[Tensor, "d d"], values: Float[Tensor, "n d"]) -> None:
    """moment += values' values; on the CPU only the lower triangle is kept up to date."""
    if moment.device.type != "cpu":
        moment += values.T @ values
        return
    # torch has no symmetric rank-k update, which does half the work of a general product. BLAS is column-major: the transposed
    # view of a row-major block is what it wants, and its upper triangle is our lower one.
    turned = values.numpy().T
    if values.dtype == torch.float64:
        blas.dsyrk(1.0, turned, beta=1.0, c=moment.numpy().T, overwrite_c=1)
    else:
        moment += torch.from_numpy(blas.ssyrk(1.0, turned).T)


def mirror_lower(matrix: Float[Tensor, "d d"], tile: int = 256) -> None:
    """Copy the lower triangle over the upper one. By tiles, as a transposed copy of the whole runs against the cache."""
    size = len(matrix)
    for a in range(0, size, tile):
        rows = slice(a, a + tile)
        for b in range(0, a, tile):
            matrix[b : b + tile, rows] = matrix[rows, b : b + tile].T
        corner = matrix[rows, rows]
        corner.copy_(torch.tril(corner) + torch.tril(corner, -1).T)
