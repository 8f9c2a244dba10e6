"""Imputation errors of all runs: mean squared error by imputer, modality and pattern, on the embeddings of one method."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.evaluation.significance import Comparison, Interval, Resamples, Sums, corrected_family, estimate, paired
from calmrl_lab.reporting.results.collect import Gathered, Method

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
# From the task of an imputer to what it has to beat.
_ORDER = ("ppca", "ridge", "knn", "mean", "zero", "random")
Key = tuple[str, str, str]


@dataclass(frozen=True)
class ImputationRow:
    """Mean ||imputed - true||^2 of one imputer; `pattern` is what was observed, or "all" of them; `items` are distinct items."""

    imputer: str
    modality: str
    pattern: str
    split: str
    mse: Interval
    items: int


@dataclass(frozen=True)
class Expectation:
    """Mean predicted and mean real error of an imputer for one modality and pattern."""

    imputer: str
    modality: str
    pattern: str
    expected: float
    made: float
    gaps: int


@dataclass(frozen=True)
class Imputations:
    """The errors on the embeddings of `method`: only there do all imputers fill the same gaps of the same vectors."""

    method: Method
    rows: tuple[ImputationRow, ...]
    overall: dict[tuple[str, str], Interval]
    differences: dict[tuple[str, str], Comparison]
    split: str
    expected: tuple[Expectation, ...]

    @property
    def imputers(self) -> list[str]:
        return list(dict.fromkeys(row.imputer for row in self.rows))

    def mean_expectation(self, imputer: str) -> tuple[float, float] | None:
        """(predicted, real) mean error over all gaps of `imputer`; None if it predicts none."""
        own = [found for found in self.expected if found.imputer == imputer]
        gaps = sum(found.gaps for found in own)
        if not gaps:
            return None
        return sum(f.expected * f.gaps for f in own) / gaps, sum(f.made * f.gaps for f in own) / gaps

    @property
    def modalities(self) -> list[str]:
        return list(dict.fromkeys(row.modality for row in self.rows))


def order(imputers: Sequence[str]) -> list[str]:
    """Imputers in the order of tables and legends; names not known here keep their place behind the model-based ones."""
    known = {name: index for index, name in enumerate(_ORDER)}
    return sorted(dict.fromkeys(imputers), key=lambda name: (known.get(name, 2.5), name))


def imputations(gathered: Gathered, method: Method | None = None) -> Imputations | None:
    """The errors found in the runs of `method` (default: the first calibrated method that has any); None if no run has any.

    `differences` holds, for the scored split, (imputer, other) -> mean error of the first minus the second over all gaps both filled,
    p corrected over all pairs.
    """
    candidates = [method] if method else sorted(gathered.methods, key=lambda found: found.role != "calibrated")
    chosen = next((found for found in candidates if found.frame("imputation")), None)
    if chosen is None:
        return None
    runs = chosen.frame("imputation")
    splits = list(dict.fromkeys(str(name) for _, frame in runs for name in frame["split"].unique()))
    if not splits:
        return None
    scored = gathered.split if gathered.split in splits else splits[-1]
    rows: list[ImputationRow] = []
    overall: dict[tuple[str, str], Interval] = {}
    differences: dict[tuple[str, str], Comparison] = {}
    for split in sorted(splits, key=lambda name: (name != scored, name)):
        part = [(seed, frame[frame["split"] == split]) for seed, frame in runs]
        found, whole, paired = _of_split([(seed, frame) for seed, frame in part if len(frame)], split)
        rows += found
        overall |= {(imputer, split): value for imputer, value in whole.items()}
        if split == scored:
            differences = paired
    return Imputations(chosen, tuple(rows), overall, differences, scored, _expectations(runs, scored))


def _of_split(
    runs: Sequence[tuple[int, pd.DataFrame]], split: str
) -> tuple[list[ImputationRow], dict[str, Interval], dict[tuple[str, str], Comparison]]:
    import pandas as pd

    every = pd.concat([frame.assign(seed=seed) for seed, frame in runs], ignore_index=True)
    imputers = order([str(name) for name in every["imputer"].unique()])
    modalities = list(dict.fromkeys(every["modality"].astype(str)))
    keys: list[Key] = []
    for imputer in imputers:
        for modality in modalities:
            own = every[(every["imputer"] == imputer) & (every["modality"] == modality)]
            if len(own):
                patterns = sorted(own["pattern"].astype(str).unique(), key=lambda name: (name.count("+"), name))
                keys += [(imputer, modality, pattern) for pattern in (ALL, *patterns)]
        keys.append((imputer, ALL, ALL))
    groups = sorted(every["group"].astype(str).unique())
    resamples = Resamples(groups)
    sums = _sums(every, groups, [seed for seed, _ in runs], keys)
    value, replicates = resamples.means(sums)
    items = _distinct(every)
    rows = [
        ImputationRow(
            imputer, modality, pattern, split, estimate(value[i], replicates[:, i]), items[imputer, modality, pattern]
        )
        for i, (imputer, modality, pattern) in enumerate(keys)
        if modality != ALL
    ]
    place = {imputer: keys.index((imputer, ALL, ALL)) for imputer in imputers}
    overall = {imputer: estimate(value[i], replicates[:, i]) for imputer, i in place.items()}
    pairs = {pair: paired(sums, [place[pair[0]]], sums, [place[pair[1]]]) for pair in itertools.combinations(imputers, 2)}
    known = {pair: found for pair, found in pairs.items() if found is not None}
    return rows, overall, corrected_family(known)


def _sums(every: pd.DataFrame, groups: Sequence[str], seeds: Sequence[int], keys: Sequence[Key]) -> Sums:
    group_at = {name: index for index, name in enumerate(groups)}
    seed_at = {seed: index for index, seed in enumerate(seeds)}
    key_at = {key: index for index, key in enumerate(keys)}
    shape = (len(seeds), len(groups), len(keys))
    totals, counts = np.zeros(shape), np.zeros(shape)
    summed = every.groupby(["seed", "group", "imputer", "modality", "pattern"], observed=True)["squared_error"].agg(
        ["sum", "count"]
    )
    for (seed, group, imputer, modality, pattern), (total, count) in zip(summed.index, summed.to_numpy(), strict=True):
        for key in ((imputer, modality, pattern), (imputer, modality, ALL), (imputer, ALL, ALL)):
            where = (seed_at[seed], group_at[str(group)], key_at[key])
            totals[where] += total
            counts[where] += count
    return Sums(tuple(seeds), tuple(groups), totals, counts)


def _distinct(every: pd.DataFrame) -> dict[Key, int]:
    by_pattern = every.groupby(["imputer", "modality", "pattern"], observed=True)["item"].nunique()
    found = {(str(i), str(m), str(p)): int(n) for (i, m, p), n in by_pattern.items()}
    whole = every.groupby(["imputer", "modality"], observed=True)["item"].nunique()
    return found | {(str(i), str(m), ALL): int(n) for (i, m), n in whole.items()}


def _expectations(runs: Sequence[tuple[int, pd.DataFrame]], split: str) -> tuple[Expectation, ...]:
    import pandas as pd

    every = pd.concat([frame[frame["split"] == split] for _, frame in runs], ignore_index=True)
    if "predicted_error" not in every.columns:
        return ()
    known = every[every["predicted_error"].notna()]
    means = known.groupby(["imputer", "modality", "pattern"], observed=True).agg(
        expected=("predicted_error", "mean"), made=("squared_error", "mean"), gaps=("squared_error", "size")
    )
    found = [
        Expectation(str(imputer), str(modality), str(pattern), float(row.expected), float(row.made), int(row.gaps))
        for (imputer, modality, pattern), row in zip(means.index, means.itertuples(index=False), strict=True)
    ]
    place = {name: index for index, name in enumerate(order([one.imputer for one in found]))}
    return tuple(sorted(found, key=lambda one: (place[one.imputer], one.modality, one.pattern)))
