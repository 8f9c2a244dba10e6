"""The summary of a report in words: a headline and a paragraph, in which every claim is backed by an interval."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from calmrl_lab.evaluation.significance import Comparison
from calmrl_lab.reporting.content.accuracy_differences import ClassDifferences, classes_in_words
from calmrl_lab.reporting.content.main_tables import probability, signed
from calmrl_lab.reporting.results.anchor_shifts import Shifts
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.reporting.results.comparisons import Comparisons
from calmrl_lab.reporting.results.imputation_errors import Imputations
from calmrl_lab.reporting.results.recalls import Recalls
from calmrl_lab.reporting.results.warnings import report_warnings
from calmrl_lab.runtime.console import listed


@dataclass(frozen=True)
class Narrative:
    """`headline` in one line, `findings` with the reasons, a sentence per question, `sureness` on how far they hold, `warnings` to be read
    before quoting."""

    headline: str
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    sureness: str = ""

    @property
    def paragraph(self) -> str:
        """What helped, what did not, and how sure that is."""
        return " ".join([*self.findings, self.sureness]).strip()


def narrate(
    gathered: Gathered,
    recalls: Recalls,
    compared: Comparisons,
    imputations: Imputations | None,
    shifts: Shifts | None,
    classes: ClassDifferences | None = None,
) -> Narrative:
    """The words of a report. Every clause depends on a comparison with its interval, so any ordering of methods reads true."""
    if not recalls.methods or not recalls.directions:
        return Narrative(
            "No finished run can be compared.",
            ("There are no scores that all methods share.",),
            report_warnings(gathered, recalls),
        )
    parts = compared.roles
    main, fair = (_judged(recalls, method) for method in (parts.calibrated[0] if parts.calibrated else None, parts.fair))
    sentences = [
        *(_effect(compared) if main and fair else []),
        *(_controls(compared) if main else []),
        *(_clip(compared) if main or not parts.calibrated else []),
        *(_complete_only(compared) if fair else []),
        *(_gap(compared, recalls) if fair else []),
        *_fillings(imputations),
        *_anchors(shifts),
        *(_disagreement(compared, imputations) if main and fair else []),
        *classes_in_words(classes, parts),
        _leader(recalls),
    ]
    warnings = report_warnings(gathered, recalls)
    return Narrative(_headline(recalls, compared), tuple(sentences), warnings, _sureness(gathered, recalls, compared))


def _judged(recalls: Recalls, method: Method | None) -> bool:
    """Whether sentences about `method` make sense: it is there, and not at chance."""
    return method is not None and not recalls[method.name].at_chance


def _fills(method: Method) -> bool:
    """Whether it imputes anything: a calibrated method may also use its model in another way."""
    return method.imputer != "none"


def _what(method: Method) -> str:
    return "Imputing missing modalities" if _fills(method) else method.label


def _by(found: Comparison) -> str:
    """The size of a difference whose interval leaves out zero, without sign; with p where the correction for all comparisons leaves doubt."""
    points = found.scaled(100)
    low, high = sorted((abs(points.low), abs(points.high)))
    return f"{abs(points.value):.1f} points [{low:.1f}, {high:.1f}]{_doubt(found)}"


def _points(found: Comparison) -> str:
    """A difference with its signs; with p where the correction for all comparisons leaves doubt."""
    points = found.scaled(100)
    return f"{signed(points.value)} points [{signed(points.low)}, {signed(points.high)}]{_doubt(found)}"


def _doubt(found: Comparison) -> str:
    """ ", p = .070 after correction" where the interval leaves out zero and p after correction is not small; else nothing."""
    return f", p {_p(found)} after correction" if found.direction and not found.verdict else ""


def _p(found: Comparison) -> str:
    text = probability(found)
    return text if text[0] in "<≤" else f"= {text}"


def _bound(found: Comparison) -> str:
    """What an interval around zero still allows."""
    low, high = 100 * found.low, 100 * found.high
    if max(abs(low), abs(high)) <= 1:
        return f"any effect is smaller than {max(abs(low), abs(high)):.1f} points"
    return f"any effect from {signed(low)} to {signed(high)} points is compatible with these data"


def _effect(compared: Comparisons) -> list[str]:
    parts = compared.roles
    if not parts.calibrated or parts.fair is None:
        return []
    known = [(method, compared.of(method.name, parts.fair.name)) for method in parts.calibrated]
    found = [(method, one) for method, one in known if one is not None]
    whole = found if len(found) < 3 else found[:1]
    sentences = []
    for method, one in whole:
        first = method is parts.calibrated[0]
        subject = f"{_what(method)} ({method.label})" if first and _fills(method) else method.label
        against = f"training on the same data without imputation ({parts.fair.label})" if first else parts.fair.label
        if one.direction:
            verb = "raised" if one.direction > 0 else "lowered"
            sentences.append(f"{subject} {verb} mean Recall@1 by {_by(one)}, compared with {against}.")
        else:
            sentences.append(
                f"{subject} had no significant effect on mean Recall@1, compared with {against}: {_points(one)}, so {_bound(one)}."
            )
    return sentences + _other_effects(found[len(whole) :])


def _other_effects(found: list[tuple[Method, Comparison]]) -> list[str]:
    """Many calibrated methods in one sentence, by how they came out against the same reference."""
    kinds = ((1, "higher"), (-1, "lower"), (0, "not significantly different"))
    clauses = []
    for verdict, word in kinds:
        own = [
            f"{method.label} ({signed(100 * one.value)} points{_doubt(one)})"
            for method, one in found
            if one.direction == verdict
        ]
        clauses += [f"{word}: {listed(own)}"] if own else []
    return [f"Compared with the same reference the other calibrated methods were {'; '.join(clauses)}."] if clauses else []


def _controls(compared: Comparisons) -> list[str]:
    parts = compared.roles
    if not parts.calibrated or not parts.controls:
        return []
    main = parts.calibrated[0]
    known = [(control, compared.of(main.name, control.name)) for control in parts.controls]
    verdicts = {one.verdict or 2 * one.direction for _, one in known if one is not None}
    clauses = [_versus(one, control.label) for control, one in known if one is not None]
    if not clauses:
        return []
    text = f"Compared with imputation by values that do not depend on the item, {main.label} was {listed(clauses)}"
    if not _fills(main):
        return [f"{text}."]
    if verdicts == {1}:
        return [f"{text}: how well the missing embeddings are imputed matters."]
    if not verdicts & {1, 2}:
        return [f"{text}: nothing here shows that the quality of the imputation matters to retrieval."]
    return [f"{text}."]


def _versus(found: Comparison, other: str) -> str:
    """How "it was ..." goes on, in the three ways it can come out."""
    if found.direction == 0:
        return f"not significantly different from {other} ({_points(found)})"
    return f"{'better' if found.direction > 0 else 'worse'} than {other} by {_by(found)}"


def _clip(compared: Comparisons) -> list[str]:
    parts = compared.roles
    subject = parts.calibrated[0] if parts.calibrated else parts.fair
    found = compared.of(subject.name, parts.clip.name) if subject and parts.clip else None
    if subject is None or parts.clip is None or found is None:
        return []
    clip = f"plain pairwise contrastive training on the observed pairs ({parts.clip.label})"
    if found.direction > 0:
        return [f"{subject.label} beat {clip} by {_by(found)}."]
    if found.direction < 0:
        return [f"{clip[0].upper()}{clip[1:]}, which imputes nothing, was better than {subject.label} by {_by(found)}."]
    return [f"{subject.label} did not differ significantly from {clip}: {_points(found)}."]


def _complete_only(compared: Comparisons) -> list[str]:
    parts = compared.roles
    if parts.complete_only is None or parts.fair is None:
        return []
    found = compared.of(parts.complete_only.name, parts.fair.name)
    if found is None:
        return []
    if found.direction < 0:
        return [f"Leaving out incomplete items ({parts.complete_only.label}) cost {_by(found)}, compared with using them."]
    if found.direction > 0:
        return [
            "Incomplete items did harm when nothing was imputed: training on complete items only "
            f"({parts.complete_only.label}) was better by {_by(found)}."
        ]
    return [f"Leaving out incomplete items ({parts.complete_only.label}) made no significant difference: {_points(found)}."]


def _gap(compared: Comparisons, recalls: Recalls) -> list[str]:
    parts = compared.roles
    if parts.oracle is None or parts.fair is None:
        return []
    if recalls[parts.oracle.name].at_chance:
        return [
            f"With nothing hidden ({parts.oracle.label}) the objective itself is at chance, so what hiding costs cannot be judged."
        ]
    gap = compared.of(parts.oracle.name, parts.fair.name)
    if gap is None:
        return []
    if gap.direction < 0:
        return [
            f"With nothing hidden ({parts.oracle.label}) the result was worse by {_by(gap)}, so there is no gap to close here."
        ]
    if gap.direction == 0:
        return [
            f"With nothing hidden ({parts.oracle.label}) the result was not significantly better ({_points(gap)}), so it is not shown that there is a gap to close."
        ]
    text = f"Hiding modalities cost {_by(gap)} ({parts.oracle.label} against {parts.fair.label})"
    won = compared.of(parts.calibrated[0].name, parts.fair.name) if parts.calibrated else None
    if won is None:
        return [f"{text}."]
    filling = "imputation" if _fills(parts.calibrated[0]) else parts.calibrated[0].label
    if won.direction > 0:
        share = 100 * won.value / gap.value
        back = "all of that and more" if share > 100 else f"about {share:.0f} % of that"
        return [f"{text}; {filling} won back {back}{_doubt(won)}."]
    if won.direction < 0:
        return [f"{text}; {filling} widened the gap{_doubt(won)}."]
    return [f"{text}; it is not shown that {filling} won back any of that."]


def _fillings(found: Imputations | None) -> list[str]:
    if found is None:
        return []
    values = {name: found.overall[name, found.split].value for name in found.imputers if (name, found.split) in found.overall}
    if not values:
        return []
    ordered = sorted(values, key=lambda name: values[name])
    text = (
        "The mean squared distance between imputed and real embeddings was "
        f"{listed([f'{values[n]:.2f} ({n})' for n in ordered])}"
    )
    if len(ordered) == 1:
        return [f"{text}."]
    unsure = [(first, second) for first, second in itertools.pairwise(ordered) if _error_verdict(found, first, second) == 0]
    if not unsure:
        return [f"{text}; all differences between neighbours in this order are significant."]
    pairs = listed([f"{first} and {second}" for first, second in unsure])
    return [f"{text}; the difference between {pairs} is not significant."]


def _error_verdict(found: Imputations, first: str, second: str) -> int:
    """-1 if the error of `first` is surely lower than that of `second`, 1 if surely higher, else 0."""
    if (first, second) in found.differences:
        return found.differences[first, second].verdict
    return -found.differences[second, first].verdict


def _anchors(found: Shifts | None) -> list[str]:
    if found is None:
        return []
    whole = found.overall
    moved = f"from {whole.observed.value:.2f} to {whole.calibrated.value:.2f}"
    if whole.change.low <= 0 <= whole.change.high:
        return [f"Imputation did not change the mean anchor shift significantly ({moved})."]
    if whole.change.value < 0:
        closer = f"Imputation moved anchors closer to those of the complete items (mean anchor shift {moved})"
        share = 100 * (1 - whole.improved.value)
        if share < 0.5:
            return [f"{closer}, for nearly all items."]
        return [f"{closer}; in {share:.0f} % of the cases it moved them farther away."]
    return [f"Imputation moved anchors farther from those of the complete items (mean anchor shift {moved})."]


def _disagreement(compared: Comparisons, found: Imputations | None) -> list[str]:
    """A sentence where imputation is better and retrieval is not."""
    parts = compared.roles
    if found is None or not parts.calibrated or parts.fair is None:
        return []
    effect = compared.of(parts.calibrated[0].name, parts.fair.name)
    own = parts.calibrated[0].imputer
    others = [name for name in found.imputers if name != own]
    closer = own in found.imputers and bool(others) and all(_error_verdict(found, own, name) < 0 for name in others)
    if closer and effect is not None and effect.verdict <= 0:
        return ["So better imputation did not lead to better retrieval here."]
    return []


def _leader(recalls: Recalls) -> str:
    racing = [found for found in recalls.methods if found.method.role != "oracle"] or list(recalls.methods)
    best, *rest = sorted(racing, key=lambda found: found.means[1].value, reverse=True)
    where = f"{best.method.label} ({100 * best.means[1].value:.1f} %)"
    level = []
    for other in rest:
        found = recalls.compare(best.method.name, other.method.name)
        if found is None or found.low <= 0:
            level.append(other.method.label)
    aside = " (without the oracle)" if len(racing) < len(recalls.methods) else ""
    if not rest:
        return f"There is no other method to compare {where} with{aside}."
    if not level:
        return f"Highest mean Recall@1{aside}: {where}, significantly better than every other method."
    verb = "does" if len(level) == 1 else "do"
    return f"Highest mean Recall@1{aside}: {where}; {listed(level)} {verb} not differ from it significantly."


def _sureness(gathered: Gathered, recalls: Recalls, compared: Comparisons) -> str:
    drawn = {run.config.get("split_seed") for method in gathered.methods for run in method.runs}
    splits = "one split" if len(drawn) == 1 else f"{len(drawn)} splits"
    seeds = min(len(found.method.seeds) for found in recalls.methods)
    queries = min(found.queries for result in recalls.methods for found in result.directions.values())
    groups = len(recalls.resamples.groups)
    basis = f"{seeds} seed{'s' if seeds != 1 else ''} and at least {queries} queries per direction ({groups} groups)"
    number = len(compared.pairs)
    corrected = (
        f"; its p is given where it is no longer significant after correction for {number} comparisons" if number > 1 else ""
    )
    return (
        f"Uncertainty: brackets are 95 % intervals over {basis}; a difference is called significant where its interval excludes zero{corrected}. "
        f"All of this holds for one dataset, {splits} and these settings."
    )


def _headline(recalls: Recalls, compared: Comparisons) -> str:
    parts = compared.roles
    main = parts.calibrated[0] if parts.calibrated else None
    lost = [method.label for method in (main, parts.fair) if method is not None and recalls[method.name].at_chance]
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        return f"{listed(lost)} {verb} at chance: whether imputing missing modalities helps cannot be judged from these runs."
    if main is None or parts.fair is None or compared.of(main.name, parts.fair.name) is None:
        return _leader(recalls)
    if _fills(main):
        return f"{_outcome(compared, main, parts.fair)}{_beside_clip(compared, main)}."
    filling = next((method for method in parts.calibrated if _fills(method)), None)
    other = f" {_outcome(compared, filling, parts.fair)}." if filling else ""
    return f"{_outcome(compared, main, parts.fair)}{_beside_clip(compared, main)}.{other}"


def _outcome(compared: Comparisons, method: Method, fair: Method) -> str:
    """What a calibrated method did to Recall@1, in one clause; the best of several is called that."""
    found = compared.of(method.name, fair.name)
    many = len(compared.roles.calibrated)
    place = f"the best of {many} calibrated methods" if many > 1 and method is compared.roles.calibrated[0] else ""
    if _fills(method):
        names = ", ".join(filter(None, (method.label if many > 1 else "", place)))
        what = f"{_what(method)} ({names})" if names else _what(method)
    else:
        what = f"{method.label}, {place}," if place else method.label
    if found is None:
        return f"{what} could not be compared"
    size = f"({signed(100 * found.value)} points of Recall@1{_doubt(found)})"
    verb = {1: "helped", 0: "made no significant difference", -1: "did harm"}[found.direction]
    return f"{what} {verb} {size}"


def _beside_clip(compared: Comparisons, main: Method) -> str:
    """How the best calibrated method compares with plain contrastive training, as the end of the headline."""
    parts = compared.roles
    found = compared.of(main.name, parts.clip.name) if parts.clip else None
    effect = compared.of(main.name, parts.fair.name) if parts.fair else None
    if found is None or effect is None:
        return ""
    if found.direction == 0:
        return "; it does not differ significantly from plain contrastive training"
    size = f" (by {abs(100 * found.value):.1f} points{_doubt(found)})" if _doubt(found) else ""
    if found.direction < 0:
        return f"; plain contrastive training on the observed pairs was better{' still' if effect.direction > 0 else ''}{size}"
    return f", {'and' if effect.direction > 0 else 'though'} the result beats plain contrastive training{size}"
