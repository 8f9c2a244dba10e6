"""Two methods on the same queries: paired differences of recall per direction, with intervals, over seeds where there are several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.score_rows import COUNTS, direction_shares, hits
from calmrl_lab.evaluation.significance import compare, holm
from calmrl_lab.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

_QUERY = ("query", "gallery", "gallery_scenario", "item", "nth")
# The last row of a comparison.
MEAN = "mean"


def runs_at(path: Path | str) -> list[Run]:
    """The run at `path`, or all runs `path`-s<seed> of one method, by seed. Raises CalmrlError if there is neither."""
    path = Path(path)
    if (path / "config.yaml").is_file():
        return [Run.open(path)]
    pattern = re.compile(re.escape(path.name) + r"-s(\d+)")
    seeds = {int(match[1]): p for p in path.parent.glob(f"{path.name}-s*") if (match := pattern.fullmatch(p.name))}
    if not seeds:
        raise CalmrlError(
            f"'{path}' is neither a run nor the beginning of runs {path.name}-s0, {path.name}-s1, ...",
            hint="for example runs/demo/calmrl-ppca",
        )
    return [Run.open(seeds[seed]) for seed in sorted(seeds)]


def compare_runs(first: Sequence[Run], second: Sequence[Run], generator: np.random.Generator, k: int = 1) -> pd.DataFrame:
    """Recall@k of `first` minus that of `second` in percent, a row per direction and a last one over all ('all').

    Queries are paired by direction, item and caption; runs by seed, where both sides have several. Columns: query, gallery, first, second,
    difference, low, high, p, corrected (Holm, over the directions; 'all' is one question of its own), clear (interval and corrected p both
    exclude zero), queries, groups, seeds, and how each side compares pairs (first_similarity, second_similarity). Queries
    that only one side has are left out: `unpaired` counts them. Raises CalmrlError for runs that were not evaluated, were scored on
    different stores, or share no query, and for seeds of one method that were scored differently.
    """
    import pandas as pd

    joined, unpaired = _paired(first, second)
    similarities = {"first_similarity": _similarity(first), "second_similarity": _similarity(second)}
    recalls = {}
    for side in ("first", "second"):
        counts = joined.rename(columns={f"{name}_{side}": name for name in COUNTS})
        recalls[side] = 100 * hits(counts, k)
    rows = []
    parts = [(key, part.index) for key, part in joined.groupby(["query", "gallery"], sort=False)]
    for (query, gallery), index in [*parts, *([((MEAN, MEAN), joined.index)] if len(parts) > 1 else [])]:
        part = joined.loc[index]
        shares = {side: direction_shares(part, recalls[side][index]) for side in recalls}
        (a, groups, seeds), (b, _, _) = shares["first"], shares["second"]
        found = compare(a, b, generator, groups, seeds)
        pooled = float((recalls["first"][index] - recalls["second"][index]).mean())
        rows.append(
            {
                "query": query, "gallery": gallery, "first": float(a.mean()), "second": float(b.mean()), "difference": found.value,
                "pooled": pooled, "low": found.low, "high": found.high, "p": found.p, "queries": len(index) // found.seeds, "groups": found.units,
                "seeds": found.seeds, "unpaired": unpaired, **similarities,
            }
        )  # fmt: skip
    directions = {place: row["p"] for place, row in enumerate(rows) if row["query"] != MEAN}
    corrected = {place: row["p"] for place, row in enumerate(rows)} | holm(directions)
    table = pd.DataFrame(rows)
    table["corrected"] = [corrected[place] for place in range(len(rows))]
    table["clear"] = ((table["low"] > 0) | (table["high"] < 0)) & (table["corrected"] < 0.05)
    return table


def _paired(first: Sequence[Run], second: Sequence[Run]) -> tuple[pd.DataFrame, int]:
    import pandas as pd

    if len({_scored_on(run) for run in (*first, *second)}) > 1:
        raise CalmrlError(
            "the runs were scored on different stores, so their queries cannot be paired",
            hint="calmrl-lab evaluate both on one store",
        )
    by_seed = [{int(run.summary["seed"]): run for run in side} for side in (first, second)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    if len(first) == len(second) == 1:
        pairs = [(0, first[0], second[0])]
    elif seeds:
        pairs = [(seed, by_seed[0][seed], by_seed[1][seed]) for seed in seeds]
    else:
        raise CalmrlError(f"the runs share no seed: {sorted(by_seed[0])} and {sorted(by_seed[1])}")
    frames, lost = [], 0
    for seed, one, other in pairs:
        tables = [_numbered(run.read_frame(run.SCORES)) for run in (one, other)]
        joined = tables[0].merge(tables[1], on=[*_QUERY, "group"], suffixes=("_first", "_second"))
        lost += len(tables[0]) + len(tables[1]) - 2 * len(joined)
        frames.append(joined.assign(seed=seed))
    joined = pd.concat(frames, ignore_index=True)
    if joined.empty:
        raise CalmrlError("the runs share no query", hint="evaluate both on the same split, directions and modalities")
    return joined, lost


def _scored_on(run: Run) -> str:
    """The digest of the store whose items were ranked, which need not be that of the training."""
    return str((run.evaluation.get("store") or run.summary["store"])["digest"])


def _similarity(runs: Sequence[Run]) -> str:
    found = sorted({str(run.read_frame(run.SCORES)["scorer"].iloc[0]) for run in runs})
    if len(found) > 1:
        raise CalmrlError(
            f"runs {', '.join(run.name for run in runs)} were scored differently: {' and '.join(found)}",
            hint="calmrl-lab evaluate them with the same --similarity",
        )
    return found[0]


def _numbered(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with `nth`: several captions of one item are told apart by their order."""
    return scores.assign(nth=scores.groupby(list(_QUERY[:-1]), sort=False).cumcount())[[*_QUERY, "group", *COUNTS]]
