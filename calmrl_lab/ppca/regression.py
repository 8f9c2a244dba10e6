"""Ridge regression of a missing modality on the observed ones, from statistics alone: what is known without a model of the joint distribution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.ppca.combination import AffineMap, CombinedAgreement, work_of_eigenvectors
from calmrl_lab.ppca.held_out import Target
from calmrl_lab.ppca.statistics import PatternStatistics, Statistics

# Penalties that are tried, as multiples of the mean eigenvalue of the sources' second moment.
STRENGTHS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Eigenvalues below this share of the largest are rounding.
_RANK = 1e-9


@dataclass(frozen=True)
class Regression:
    """x -> ((x - x0) left) right, deviations of a missing modality from its reference; x0 are the references of the `observed` modalities.

    `left` [D, r] and `right` [r, d_m] are float32: a modality has hundreds of dimensions, and there is a map for every target.
    """

    observed: tuple[int, ...]
    left: Float[Tensor, "d_o r"]
    right: Float[Tensor, "r d_m"]

    def __call__(self, deviations: Float[Tensor, "n d_o"]) -> Float[Tensor, "n d_m"]:
        """Predicted deviations from the reference, for deviations of the observed modalities side by side."""
        return (deviations @ self.left.to(deviations)) @ self.right.to(deviations)


@dataclass(frozen=True)
class Sources:
    """All ridge regressions of one target at once: the sources on the eigenvectors of their second moment about the reference.

    `vectors` [D, r] and `values` [r] are those of the mean second moment; `crossed` [r, d_m] the mean cross-moment with the missing
    modality on them.
    """

    target: Target
    reference: tuple[Float[Tensor, " d"], ...]
    vectors: Float[Tensor, "d_o r"]
    values: Float[Tensor, " r"]
    crossed: Float[Tensor, "r d_m"]

    @classmethod
    def of(cls, statistics: Statistics, target: Target, reference: Sequence[Float[Tensor, " d"]], least: int) -> Sources | None:
        """From the items of `statistics` that show all of `target`; None if there are fewer than `least`, or nothing is observed to predict
        from. `reference`, one per modality, is in the coordinates of the statistics."""
        observed, missing = target
        serving = _serving(statistics, target)
        count = sum(sums.count for sums in serving)
        if count < least or not observed:
            return None
        centre = tuple(reference)
        rows = [_rows(statistics, sums, observed, centre) for sums in serving]
        # Fewer items than dimensions: the Gram matrix has the same spectrum, and costs less.
        if all(part is not None for part in rows) and count < sum(statistics.dims[j] for j in observed):
            x = torch.cat([part for part in rows if part is not None])
            y = torch.cat([part for sums in serving if (part := _rows(statistics, sums, (missing,), centre)) is not None])
            values, left = torch.linalg.eigh(x @ x.T / count)
            kept = values > _RANK * values[-1].clamp_min(1e-300)
            values, left = values[kept], left[:, kept]
            vectors = x.T @ left / (count * values).sqrt()
            return cls(target, centre, vectors, values, (values / count).sqrt().unsqueeze(1) * (left.T @ y))
        sources, crossed = (
            sum(_moment(statistics, sums, observed, columns, centre) for sums in serving) / count
            for columns in (observed, (missing,))
        )
        values, vectors = torch.linalg.eigh(sources)
        kept = values > _RANK * values[-1].clamp_min(1e-300)
        return cls(target, centre, vectors[:, kept], values[kept], vectors[:, kept].T @ crossed)

    def beside(self, held_out: Statistics, other: AffineMap) -> list[CombinedAgreement]:
        """How `other` and the prediction at each of `STRENGTHS`, in this order, agree with the truth and with each other, over the items of
        `held_out` that show all of the target."""
        q = other.left.shape[1]
        along = _Along.of(held_out, self.target, torch.cat([other.left, self.vectors], dim=1), self.reference)
        agreed = float((other.right * along.crossed[:q]).sum() + other.offset @ along.total)
        constant = other.right @ other.offset
        power = float((other.right @ other.right.T * along.second[:q, :q]).sum() + 2 * along.first[:q] @ constant)
        power += along.count * float(other.offset @ other.offset)
        ours = (along.crossed[q:] * self.crossed).sum(dim=1)
        square = (self.crossed @ self.crossed.T) * along.second[q:, q:]
        shared = (along.second[:q, q:] * (other.right @ self.crossed.T)).sum(dim=0)
        shared += along.first[q:] * (self.crossed @ other.offset)
        found = []
        for strength in STRENGTHS:
            weights = self._weights(strength)
            common, own = float(weights @ shared), max(float(weights @ square @ weights), 0.0)
            found.append(
                CombinedAgreement(
                    along.count,
                    along.energy,
                    np.array([agreed, float(weights @ ours)]),
                    np.array([[max(power, 0.0), common], [common, own]]),
                )
            )
        return found

    def at(self, strength: float, statistics: Statistics, gain: float = 1.0) -> Regression:
        """The regression at one of `STRENGTHS` times `gain`, in the coordinates of the features where `statistics` are in others."""
        observed, missing = self.target
        left, right = self.vectors * self._weights(strength), gain * self.crossed
        if statistics.bases is not None:
            parts = left.split([statistics.dims[j] for j in observed])
            left = torch.cat([statistics.bases[j] @ part for j, part in zip(observed, parts, strict=True)])
            right = right @ statistics.bases[missing].T
        # The smaller form of the same map.
        if left.shape[1] * sum((len(left), right.shape[1])) > len(left) * right.shape[1]:
            left, right = left @ right, torch.eye(right.shape[1], dtype=left.dtype, device=left.device)
        return Regression(observed, left.float(), right.float())

    def _weights(self, strength: float) -> Float[Tensor, " r"]:
        return 1 / (self.values + strength * self.values.mean().clamp_min(1e-300))


@dataclass
class _Along:
    """Moments of the items that show a target: of their sources along some directions (a of them), and of the missing modality itself.

    Sums over items, both about their references: of 1, y'y, x, y, xx' and xy'.
    """

    count: float
    energy: float
    first: Float[Tensor, " a"]
    total: Float[Tensor, " d_m"]
    second: Float[Tensor, "a a"]
    crossed: Float[Tensor, "a d_m"]

    @classmethod
    def of(
        cls, statistics: Statistics, target: Target, directions: Float[Tensor, "d_o a"], reference: Sequence[Tensor]
    ) -> _Along:
        observed, missing = target
        a, d = directions.shape[1], len(reference[missing])
        found = cls(0.0, 0.0, *(directions.new_zeros(shape) for shape in ((a,), (d,), (a, a), (a, d))))
        for sums in _serving(statistics, target):
            found.count += sums.count
            ours, theirs = (_columns(statistics, sums, wanted) for wanted in (observed, (missing,)))
            x0, y0 = torch.cat([reference[j] for j in observed]), reference[missing]
            found.first += (sums.total[ours] - sums.weight * x0) @ directions
            found.total += sums.total[theirs] - sums.weight * y0
            if sums.moment is None:
                # Few rows: through them, without a matrix of all coordinates.
                for number, rows in enumerate(sums.rows):
                    roots = sums.roots[number].unsqueeze(1) if sums.roots else 1.0
                    lying = (rows[:, ours].double() - roots * x0) @ directions
                    truth = rows[:, theirs].double() - roots * y0
                    found.second += lying.T @ lying
                    found.crossed += lying.T @ truth
                    found.energy += float(truth.square().sum())
            else:
                found.second += directions.T @ _moment(statistics, sums, observed, observed, reference) @ directions
                found.crossed += directions.T @ _moment(statistics, sums, observed, (missing,), reference)
                found.energy += max(float(_moment(statistics, sums, (missing,), (missing,), reference).trace()), 0.0)
        return found


def work(statistics: Statistics, target: Target) -> float:
    """About how many multiplications `Sources.of` takes."""
    count = sum(sums.count for sums in _serving(statistics, target))
    return work_of_eigenvectors(count, sum(statistics.dims[j] for j in target[0]))


def _serving(statistics: Statistics, target: Target) -> list[PatternStatistics]:
    needed = {*target[0], target[1]}
    return [sums for shown, sums in statistics.patterns.items() if needed <= set(shown)]


def _columns(statistics: Statistics, sums: PatternStatistics, wanted: Sequence[int]) -> Tensor:
    """Where the coordinates of the modalities `wanted` are among those of a pattern."""
    ends = list(itertools.accumulate((statistics.dims[j] for j in sums.observed), initial=0))
    places = [sums.observed.index(j) for j in wanted]
    return torch.cat([torch.arange(ends[place], ends[place + 1], device=sums.total.device) for place in places])


def _rows(
    statistics: Statistics, sums: PatternStatistics, wanted: Sequence[int], reference: Sequence[Tensor]
) -> Float[Tensor, "n d"] | None:
    """Rows about the reference; None where a pattern has given them up for its moment."""
    if sums.moment is not None or sums.roots:
        return None
    columns = _columns(statistics, sums, wanted)
    centre = torch.cat([reference[j] for j in wanted])
    return torch.cat([part[:, columns].double() - centre for part in sums.rows])


def _moment(
    statistics: Statistics, sums: PatternStatistics, left: Sequence[int], right: Sequence[int], reference: Sequence[Tensor]
) -> Float[Tensor, "a b"]:
    """Sum over the items of a pattern of (x - x0)(y - y0)', x the modalities `left` and y the modalities `right`."""
    ours, theirs = (_columns(statistics, sums, wanted) for wanted in (left, right))
    x0, y0 = (torch.cat([reference[j] for j in wanted]) for wanted in (left, right))
    found = x0.new_zeros(len(ours), len(theirs))
    if sums.moment is not None:
        found += sums.moment[ours][:, theirs]
    for part in sums.rows:
        found += part[:, ours].double().T @ part[:, theirs].double()
    total = sums.total
    found -= torch.outer(total[ours], y0) + torch.outer(x0, total[theirs])
    return found + sums.weight * torch.outer(x0, y0)
