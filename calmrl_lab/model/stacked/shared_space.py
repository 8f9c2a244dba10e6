"""Which modalities share a feature space, as validation items show it, and the two-covariance model of each such group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.linalg.floating_range import unit_rows
from calmrl_lab.model.selection import mean_over_directions, pairs_of_modalities
from calmrl_lab.model.stacked.feature_cosine import FeatureCosine
from calmrl_lab.model.stacked.weights import MOST_ITEMS, logistic_weights
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.ppca.two_covariance import TwoCovariance

# Shrinkage of the within-item and of the between-item covariance that validation chooses among, and where the search begins.
_WITHIN = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
_BETWEEN = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
_FIRST = (10.0, 0.03)
# Two modalities share a space if the cosine of their features saves at least this share of the nats that guessing costs, beyond two standard errors.
_LEAST_GAIN, _ERRORS = 0.05, 2.0


def groups_of_one_dimension(dims: Sequence[int]) -> list[tuple[int, ...]]:
    """Modalities whose features have equal dimensions, two or more: those whose features have a cosine at all."""
    places = {dim: tuple(j for j, other in enumerate(dims) if other == dim) for dim in dict.fromkeys(dims)}
    return [group for group in places.values() if len(group) > 1]


def feature_cosine(table: FeatureTable, groups: Sequence[tuple[int, ...]], centred: bool) -> FeatureCosine:
    """The cosine of features within `groups`, with `centred` about the mean of the unit-norm training rows of each modality."""
    names = table.modalities
    centres = {}
    if centred:
        rows = table.first_rows()
        for j in (j for group in groups for j in group if bool(table.mask[:, j].any())):
            centres[names[j]] = unit_rows(rows[j][table.mask[:, j]].double()).mean(dim=0)
    dims = tuple(table.rows[group[0]].shape[1] for group in groups)
    return FeatureCosine(tuple(tuple(names[j] for j in group) for group in groups), dims, centres)


def shared_groups(table: FeatureTable, validation: FeatureTable) -> list[tuple[int, ...]]:
    """Groups of modalities that share a feature space as they come, the largest first.

    Candidates are modalities of one dimension. Two are linked if, on the items of `validation` and then of `table` that show both, 500 at
    most, the softmax over candidates of their scaled cosine about the training means finds the match better than guessing does, beyond two
    standard errors over items and by at least 5 % of log n nats; groups are what links connect. Names play no part. Nothing but the means is
    fitted to training items, so that they may be used as well, and few validation items are no reason to overlook a shared space.
    """
    owned = torch.cat([validation.natural_mask(), table.mask])
    rows = [
        torch.cat([part.float() for part in both]) for both in zip(validation.first_rows(), table.first_rows(), strict=True)
    ]
    links: list[tuple[int, int]] = []
    for group in groups_of_one_dimension([part.shape[1] for part in table.rows]):
        cosine = feature_cosine(table, [group], centred=True)
        vectors = {j: cosine.vectors(table.modalities[j], rows[j], rows[j]) for j in group}
        for a, b in itertools.combinations(group, 2):
            items = (owned[:, a] & owned[:, b]).nonzero().squeeze(1)[:MOST_ITEMS]
            seen_together = bool((table.mask[:, a] & table.mask[:, b]).any())
            if len(items) > 2 and seen_together and _finds(vectors[a][items] @ vectors[b][items].T):
                links.append((a, b))
    return _connected(links)


def _finds(scores: Float[Tensor, "n n"]) -> bool:
    weight = float(logistic_weights([scores[None], scores.T[None]])[0])
    guess = torch.log(torch.tensor(float(len(scores)), dtype=torch.float64))
    gains = [guess + torch.log_softmax(weight * part, dim=1).diagonal() for part in (scores, scores.T)]
    gain = (gains[0] + gains[1]) / 2
    error = float(gain.std()) / len(gain) ** 0.5
    return float(gain.mean()) > max(_ERRORS * error, _LEAST_GAIN * float(guess))


def _connected(links: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    groups: list[set[int]] = []
    for link in links:
        touching = [group for group in groups if group & set(link)]
        groups = [group for group in groups if group not in touching] + [set(link).union(*touching)]
    return sorted((tuple(sorted(group)) for group in groups), key=lambda group: (-len(group), group))


@dataclass(frozen=True)
class SharedSpace:
    """The two-covariance models of groups of modalities as one latent model, of unit-norm features: a modality of no group says nothing, and the
    likelihood ratio of modalities of different groups is zero. `chosen`: one record per group."""

    latent: LatentMaps
    groups: tuple[tuple[int, ...], ...]
    chosen: tuple[dict[str, Any], ...]


def fit_shared_space(table: FeatureTable, validation: FeatureTable, groups: Sequence[tuple[int, ...]]) -> SharedSpace:
    """A two-covariance model of each of `groups`; its two shrinkages by the mean reciprocal rank of its directions on `validation`.

    One row per item and modality is used, at unit norm.
    """
    names = table.modalities
    rows, held_out = ([unit_rows(part.double()) for part in of.first_rows()] for of in (table, validation))
    parts, chosen = [], []
    for group in groups:
        places = list(group)
        fitted = TwoCovariance.fit([rows[j] for j in group], table.mask[:, places])
        model, record = _ShrinkageSearch(fitted, [held_out[j] for j in group], _only(validation, group)).best()
        parts.append(model.latent_maps([names[j] for j in group]))
        chosen.append({"modalities": [names[j] for j in group], **record})
    return SharedSpace(_side_by_side(table, groups, parts), tuple(groups), tuple(chosen))


class _ShrinkageSearch:
    """Uphill over the grid of the two shrinkages, one step at a time."""

    def __init__(self, model: TwoCovariance, rows: Sequence[Tensor], validation: FeatureTable) -> None:
        self.model, self.validation = model, validation
        # The scores need rows on the axes only.
        self.lying = [(part - mean) @ model.axes for part, mean in zip(rows, model.means, strict=True)]
        self.scores: dict[tuple[int, int], float] = {}

    def best(self) -> tuple[TwoCovariance, dict[str, Any]]:
        here = (_WITHIN.index(_FIRST[0]), _BETWEEN.index(_FIRST[1]))
        while True:
            there = max([here, *self._neighbours(here)], key=self._score)
            if there == here:
                break
            here = there
        within, between = _WITHIN[here[0]], _BETWEEN[here[1]]
        record = {
            "within": within, "between": between, "validation_mrr": self._score(here), "candidates": len(self.scores),
        }  # fmt: skip
        return self.model.shrunk(within, between), record

    def _neighbours(self, place: tuple[int, int]) -> Iterator[tuple[int, int]]:
        for row, column in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            there = (place[0] + row, place[1] + column)
            if 0 <= there[0] < len(_WITHIN) and 0 <= there[1] < len(_BETWEEN):
                yield there

    def _score(self, place: tuple[int, int]) -> float:
        if place not in self.scores:
            shrunk = self.model.shrunk(_WITHIN[place[0]], _BETWEEN[place[1]])
            ratios = _Ratios(shrunk, self.lying)
            directions = (scores for pair in pairs_of_modalities(self.validation) for scores in ratios.compared(*pair))
            self.scores[place] = mean_over_directions(directions)["validation_mrr"]
        return self.scores[place]


class _Ratios:
    """Likelihood ratios of validation rows under one model."""

    def __init__(self, model: TwoCovariance, lying: Sequence[Tensor]) -> None:
        # In the coordinates of `TwoCovariance.canonical` everything is diagonal.
        directions, ratios = model.canonical()
        on_axes = model.axes.T @ directions
        self.vectors = [part @ on_axes for part in lying]
        self.cross = ratios / (1 + 2 * ratios)
        self.own = 0.5 * (ratios / (1 + ratios) - ratios / (1 + 2 * ratios))

    def compared(self, a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.vectors[a][both], self.vectors[b][both]
        scores = (x * self.cross) @ y.T
        return scores - y.square() @ self.own, scores.T - x.square() @ self.own


def _only(table: FeatureTable, group: tuple[int, ...]) -> FeatureTable:
    """`table` without the modalities that are not of the group."""
    places = list(group)
    names = tuple(table.modalities[j] for j in group)
    rows, offsets = (tuple(of[j] for j in group) for of in (table.rows, table.offsets))
    return FeatureTable(names, table.ids, table.group, rows, offsets, table.mask[:, places])


def _side_by_side(table: FeatureTable, groups: Sequence[tuple[int, ...]], parts: Sequence[LatentMaps]) -> LatentMaps:
    """The latent vectors of all groups in one, each with coordinates of its own; a modality of no group has no weight on any."""
    k, q = len(table.modalities), sum(part.latent_dim for part in parts)
    dims = [part.shape[1] for part in table.rows]
    centres = [torch.zeros(dim, dtype=torch.float64) for dim in dims]
    maps = [torch.zeros(dim, q, dtype=torch.float64) for dim in dims]
    precisions = torch.zeros(k, q, q, dtype=torch.float64)
    start = 0
    for group, part in zip(groups, parts, strict=True):
        end = start + part.latent_dim
        for place, j in enumerate(group):
            centres[j] = part.centres[place]
            maps[j][:, start:end] = part.maps[place]
            precisions[j, start:end, start:end] = part.precisions[place]
        start = end
    return LatentMaps(table.modalities, tuple(centres), tuple(maps), precisions)
