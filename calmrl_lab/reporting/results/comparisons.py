"""Comparisons of methods: the roles of methods (fair baseline, plain CLIP, oracle, controls) and paired differences between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calmrl_lab.evaluation.significance import Comparison
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.reporting.results.recalls import Recalls


@dataclass(frozen=True)
class Roles:
    """The parts methods play. `calibrated` in the order of the experiment, or best first (`best_first`). `fair` is the observed-only objective under the same hidden modalities and after the same warm-up, never an
    untrained system; `complete_only` the same trained on complete items alone."""

    calibrated: tuple[Method, ...]
    fair: Method | None
    clip: Method | None
    complete_only: Method | None
    oracle: Method | None
    controls: tuple[Method, ...]

    def best_first(self, recalls: Recalls) -> Roles:
        """The same with the calibrated methods by mean Recall@1. Looking for the best of them costs nothing more: p is corrected for all."""
        if not recalls.directions:
            return self
        ordered = sorted(self.calibrated, key=lambda method: recalls[method.name].means[1].value, reverse=True)
        return replace(self, calibrated=tuple(ordered))


def roles(gathered: Gathered) -> Roles:
    """The roles, found from the settings of the runs (objective, imputer, scenario), not from their names."""
    calibrated = tuple(gathered.role("calibrated"))
    scenario = next((m.scenario for m in (*calibrated, *gathered.role("control"), *gathered.role("baseline"))), "full")
    main = next(iter(calibrated), None)
    plain = [
        m
        for m in gathered.methods
        if m.role == "baseline" and m.imputer == "none" and m.scenario == scenario and m.trained
        and (main is None or m.warmed_up == main.warmed_up)
    ]  # fmt: skip
    others = [m for m in plain if m.objective != "clip"]
    return Roles(
        calibrated=calibrated,
        fair=next((m for m in others if m.objective == "pmrl"), others[0] if others else None),
        clip=next((m for m in plain if m.plain_contrast), None),
        complete_only=next((m for m in gathered.role("baseline") if _on_complete_items(m)), None),
        oracle=next(iter(gathered.role("oracle")), None),
        controls=tuple(gathered.role("control")),
    )


def _on_complete_items(method: Method) -> bool:
    """Whether it is trained, and never on an item with gaps: these are left out, or training ends with the warm-up."""
    if method.objective == "none":
        return False
    return "complete-only" in method.scenario or (method.warmed_up and not method.trained)


@dataclass(frozen=True)
class Comparisons:
    """Differences in mean Recall@1 (fractions), method minus reference, p corrected over all that the report looks at."""

    roles: Roles
    pairs: dict[tuple[str, str], Comparison]

    def of(self, name: str, other: str) -> Comparison | None:
        return self.pairs.get((name, other))

    def key_comparisons(self) -> list[tuple[Method, Method, Comparison]]:
        """The comparisons that are shown one by one, in the order of the questions they answer."""
        parts, pairs = self.roles, []
        for method in parts.calibrated:
            others = (
                (parts.fair, parts.clip, parts.complete_only, *parts.controls)
                if method is parts.calibrated[0]
                else (parts.fair,)
            )
            pairs += [(method, other) for other in others if other is not None]
        if parts.fair is not None:
            pairs += [(method, parts.fair) for method in (parts.clip, parts.complete_only, parts.oracle) if method is not None]
        found = [(method, other, self.of(method.name, other.name)) for method, other in pairs]
        return [(method, other, one) for method, other, one in found if one is not None]


def comparisons(gathered: Gathered, recalls: Recalls) -> Comparisons:
    """Every method against the fair baseline and against CLIP, and the calibrated ones against their controls and the oracle."""
    parts = roles(gathered).best_first(recalls)
    pairs: list[tuple[str, str]] = []
    for reference in (parts.fair, parts.clip):
        if reference is not None:
            pairs += [(method.name, reference.name) for method in gathered.methods if method.name != reference.name]
    for method in parts.calibrated:
        pairs += [(method.name, control.name) for control in parts.controls]
        pairs += [(method.name, parts.oracle.name)] if parts.oracle else []
        pairs += [(method.name, parts.complete_only.name)] if parts.complete_only else []
    return Comparisons(parts, recalls.family(pairs))
