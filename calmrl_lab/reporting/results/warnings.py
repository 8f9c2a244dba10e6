"""Warnings of a report: methods at chance or below their features, single seeds, missing runs, missing directions."""

from __future__ import annotations

from calmrl_lab.reporting.results.collect import Gathered
from calmrl_lab.reporting.results.feature_reference import BelowFeatures, below_features
from calmrl_lab.reporting.results.recalls import MethodResult, Recalls
from calmrl_lab.runtime.console import listed


def report_warnings(gathered: Gathered, recalls: Recalls) -> tuple[str, ...]:
    """One sentence per reason for care; empty if all is as it should be."""
    found = [gathered.stand_in] if gathered.stand_in else []
    found += _at_chance([result for result in recalls.methods if result.means and result.at_chance])
    found += _below_features(list(below_features(gathered)))
    few = [result.method.label for result in recalls.methods if len(result.method.seeds) == 1]
    if few:
        found.append(f"Only one seed for {listed(few)}: how much another training run would differ is not in the intervals.")
    unequal = {result.method.seeds for result in recalls.methods}
    if len(unequal) > 1:
        found.append("Not all methods have the same seeds; differences use the seeds both have.")
    if gathered.absent:
        found.append(
            f"No finished run of {listed([method.label for method in gathered.absent])}: missing from every table and figure."
        )
    if not gathered.complete:
        found.append("The experiment has not finished, or these are single runs; tables show the runs that have finished.")
    partial = [r.method.label for r in recalls.methods if set(r.directions) != set(recalls.all_directions)]
    if partial:
        found.append(
            f"{listed(partial)} lack some directions; means are over the {len(recalls.directions)} that all methods have."
        )
    return tuple(found)


def _at_chance(lost: list[MethodResult]) -> list[str]:
    if not lost:
        return []
    named = [
        f"{r.method.label} ({100 * r.means[10].value:.1f} % [{100 * r.means[10].low:.1f}, {100 * r.means[10].high:.1f}])"
        for r in lost
    ]
    return [
        f"At chance in Recall@10: {listed(named)}; a random order gives {100 * lost[0].chance[10]:.1f} %. Nothing can be concluded from "
        "that. Look for training that diverged, weights that were not loaded, or features that do not belong to these items."
    ]


def _below_features(lost: list[BelowFeatures]) -> list[str]:
    if not lost:
        return []
    named = []
    for one in lost:
        (query, gallery), points = next(iter(one.directions.items()))
        count = len(one.directions)
        where = f"{query} → {gallery}" if count == 1 else f"{count} directions, most in {query} → {gallery}"
        named.append(f"{one.method.label} (in {where}, by {points:.1f} points)")
    return [
        f"Below the cosine of the features as they come, which needs no training, beyond the 95 % interval in most runs: {listed(named)}. These features "
        "share a space already; the methods raw and recommended keep it."
    ]
