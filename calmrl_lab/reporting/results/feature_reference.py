"""Recall of the features as they come, as the runs of a report recorded it: a reference for every direction, and the methods below it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.reporting.results.recalls import Direction


def feature_recalls(gathered: Gathered) -> dict[Direction, float]:
    """Recall@1 (fraction) of the cosine of unit-norm features by direction, mean over seeds; without directions in which it is not defined."""
    by_seed: dict[Direction, dict[int, float]] = defaultdict(dict)
    for method in gathered.methods:
        for run in method.runs:
            for row in run.features:
                by_seed[row["query"], row["gallery"]][run.seed] = row["feature_recall_at_1"] / 100
    return {direction: float(np.mean(list(found.values()))) for direction, found in by_seed.items()}


@dataclass(frozen=True)
class BelowFeatures:
    """A method that is below the cosine of its features in `directions`, beyond the paired 95 % interval in most of its runs: points of Recall@1
    that are missing, mean over runs, the most first."""

    method: Method
    directions: dict[Direction, float]


def below_features(gathered: Gathered) -> Iterator[BelowFeatures]:
    """The methods that are below the cosine of their features somewhere."""
    for method in gathered.methods:
        rows: dict[Direction, list[tuple[float, bool]]] = defaultdict(list)
        for run in method.runs:
            for row in run.features:
                rows[row["query"], row["gallery"]].append((-row["difference"], row["high"] < 0))
        lost = {
            direction: float(np.mean([points for points, _ in found]))
            for direction, found in rows.items()
            if 2 * sum(sure for _, sure in found) > len(found)
        }
        if lost:
            yield BelowFeatures(method, dict(sorted(lost.items(), key=lambda entry: -entry[1])))
