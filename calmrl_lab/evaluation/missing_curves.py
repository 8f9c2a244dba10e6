"""Retrieval when modalities are missing at test time: ranks per query, for every scorer and scenario, with gaps filled or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.missingness import apply_scenario, named_modalities, pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.retrieval import rank_items
from calmrl_lab.evaluation.run_items import imputer_of, open_run
from calmrl_lab.evaluation.score_rows import hits, recall_table, score_rows
from calmrl_lab.evaluation.significance import compare
from calmrl_lab.model.embeddings import Embeddings
from calmrl_lab.model.similarity import Similarity
from calmrl_lab.objectives import objectives
from calmrl_lab.registry import known
from calmrl_lab.runs.run import writes_into_run
from calmrl_lab.runtime import console
from calmrl_lab.runtime.progress import tracked
from calmrl_lab.runtime.threads import limited
from calmrl_lab.scorers import scorers as known_scorers
from calmrl_lab.scorers._names import family, is_single
from calmrl_lab.scorers.base import make_scorer

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.model.alignment_model import AlignmentModel
    from calmrl_lab.runs.run import Run

RATES = (0.25, 0.5, 0.75, 0.9)
SCORERS = ("centroid", "anchor")
# Query modalities, and modalities dropped in turn, of more of which some are taken where none are named: the work grows with the cube of them.
MOST_QUERIES, MOST_DROPS = 6, 5
# What makes one curve: rows that agree in these differ only in the scenario.
CURVE = ("query", "gallery", "side", "scorer", "calibrated")


class _NoQueries(CalmrlError):
    """A scenario and a modality of queries that leave nothing to score."""


def default_scenarios(modalities: Sequence[str]) -> list[str]:
    """Nothing hidden, nested random masks at 25/50/75/90 %, and modalities dropped in turn (where another is left), of many some."""
    drops = [f"drop:{m}" for m in some(modalities, MOST_DROPS)] if len(modalities) > 1 else []
    return ["full", *(f"random:{rate:g}" for rate in RATES), *drops]


def some(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of `names`, evenly spread over their order.

    >>> some("abcdef", 3)
    ['a', 'c', 'f']
    """
    if len(names) <= most:
        return list(names)
    return [names[round(place)] for place in np.linspace(0, len(names) - 1, most)]


def missing_curves(
    embedded: Embeddings,
    imputer: Any | None = None,
    scorers: Sequence[str] = SCORERS,
    scenarios: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    seed: int = 0,
    objective: Any = None,
    compared: Mapping[str, tuple[Similarity, Embeddings]] | None = None,
) -> pd.DataFrame:
    """Score rows of queries of one modality among items that show any subset of the others (side 'gallery'), and back (side 'query').

    Scenarios hide modalities of the items, never that of the queries; their masks are the same for every scorer, with and
    without calibration, and nested over the rates of `random`. Beside the `scorers`, every single modality is scored by the same similarity
    (`cosine:<modality>`, `sum:<modality>`), for `aggregation_gain`. With a fitted `imputer`, everything is computed a second time with
    the items' gaps filled from what they show (`calibrated`). Scorers that condition on what is shown are computed once: 'imputer-likelihood', which
    needs a PPCA of the embeddings as `imputer`, and those that compare by another similarity than the cosine, which need it, and what it
    compares of the same items, in `compared`, by its name. 'fused' needs a trained `objective` that fuses, and is computed for the modality of its
    queries. Items that show nothing rank last and, as queries, guess.

    Columns: those of score rows, side, calibrated, unserved (candidates or queries that show nothing the scorer can use) and without_positive
    (queries that were left out, because nothing in the gallery is their item); pattern is what the item shows under the scenario.
    Raises CalmrlError for unknown modalities, scorers and scenarios, and for a query modality that no item shows or that a scenario names. Where no
    `queries` are named, such are left out with a note, and it is an error only if nothing is left.
    """
    import pandas as pd

    asking = objective.modalities[objective.query] if hasattr(objective, "fused") else None
    if "fused" in scorers and asking is not None and asking not in (queries or embedded.modalities):
        raise CalmrlError(
            f"scorer 'fused': the fusion heads of this run were trained for queries of '{asking}'", hint=f"--query {asking}"
        )
    parts: list[pd.DataFrame] = []
    left_out: dict[str, _NoQueries] = {}
    parts_of_model = {"imputer": imputer, "objective": objective}
    if queries is None and len(embedded.modalities) > MOST_QUERIES:
        console.note(
            f"curves for {MOST_QUERIES} of {len(embedded.modalities)} query modalities, at most {MOST_DROPS} modalities dropped in turn; --query and "
            "--scenario name others"
        )
    for query in dict.fromkeys(queries or some(embedded.modalities, MOST_QUERIES)):
        known(query, embedded.modalities, "queries have no modality")
        others = [m for m in embedded.modalities if m != query]
        asked = list(dict.fromkeys(scenarios or default_scenarios(others)))
        for scenario in tracked(asked, f"queries of {query}", unit="scenarios"):
            try:
                parts += _scenario_parts(embedded, parts_of_model, compared or {}, scorers, scenario, query, others, seed)
            except _NoQueries as error:
                if queries is not None:
                    raise
                left_out[error.message] = error
    if not parts:
        raise next(iter(left_out.values()))
    for message in left_out:
        console.note(f"left out: {message}")
    return pd.concat(parts, ignore_index=True)


@limited()
@writes_into_run
def run_curves(
    run: Run | str,
    scorers: Sequence[str] | None = None,
    scenarios: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    impute: str | None = None,
    split: str = "test",
    device: str = "auto",
) -> pd.DataFrame:
    """`missing_curves` of a finished run, written into it as curves.parquet.

    `scorers` default to centroid and anchor for runs that compare pairs by cosine, with the scorer of the objective's own system where there is one
    (`Objective.scorer`), and to the run's own similarity for the others. Gaps are filled by the run's own imputer, or by `impute` fitted on the training embeddings after the fact; a run with
    neither has no calibrated rows.
    """
    run, model, items = open_run(run, device=device)
    own = model.similarity.name
    scorers = scorers or ((*SCORERS, *_of_system(run, model)) if own == "cosine" else (own,))
    table = items.of(split)
    others = {name: model.compared_by(name) for name in dict.fromkeys(map(family, scorers)) if name != "cosine"}
    compared = {name: (other.similarity, other.represent(table)) for name, other in others.items()}
    objective = (
        model.trained_objective() if any("objective" in known_scorers.get(s.partition(":")[0]).needs for s in scorers) else None
    )
    imputer = imputer_of(run, model, items, impute)
    frame = missing_curves(model.embed(table), imputer, scorers, scenarios, queries, run.config.seed, objective, compared)
    run.write_frame(run.CURVES, frame)
    return frame


def _of_system(run: Run, model: AlignmentModel) -> tuple[str, ...]:
    """The scorer by which the system of the run's objective compares, where it has one that can see these modalities."""
    name = run.config.objective
    scorer = getattr(objectives.get(name), "scorer", None) if name in objectives.names() else None
    # An area needs exactly two modalities beside that of the query.
    return () if scorer is None or scorer in SCORERS or (scorer == "area" and len(model.modalities) != 3) else (scorer,)


def _scenario_parts(
    embedded: Embeddings,
    parts: Mapping[str, Any],
    compared: Mapping[str, tuple[Similarity, Embeddings]],
    scorers: Sequence[str],
    scenario: str,
    query: str,
    others: list[str],
    seed: int,
) -> list[pd.DataFrame]:
    asking = embedded.modalities.index(query)
    columns = [embedded.modalities.index(m) for m in others]
    natural = embedded.mask[:, columns].cpu().numpy()
    if query in named_modalities(scenario, embedded.modalities):
        raise _NoQueries(
            f"scenario '{scenario}' names '{query}', which for queries of '{query}' is no part of the items",
            hint="name another modality with --query, or another scenario",
        )
    shown, keep = apply_scenario(scenario, embedded.ids, others, natural, seed)
    if not keep.any():
        raise _NoQueries(f"scenario '{scenario}' leaves no item in the gallery of queries of '{query}'")
    kept = torch.from_numpy(np.flatnonzero(keep)).to(embedded.mask.device)
    mask = torch.from_numpy(shown).to(embedded.mask.device)
    owners = embedded.owners[asking]
    if not bool(torch.isin(owners, kept).any()):
        raise _NoQueries(f"no item of the gallery has modality '{query}', so there are no queries of it")
    patterns, joint = np.asarray(pattern_names(shown, others)), "+".join(others)
    made: list[pd.DataFrame] = []
    views = [(False, embedded.items[:, columns], mask)]
    imputer, objective = parts["imputer"], parts["objective"]
    if imputer is not None:
        views.append((True, *_calibrated(embedded, imputer, columns, mask)))
    singles = [f"{kind}:{m}" for kind in dict.fromkeys(map(family, scorers)) for m in others]
    for calibrated, items, seen in views:
        for name in dict.fromkeys([*scorers, *singles]):
            kind = known_scorers.get(name.partition(":")[0])
            if kind.conditions and calibrated:
                continue
            if name == "fused" and hasattr(objective, "fused") and objective.modalities[objective.query] != query:
                continue
            similarity, vectors = compared.get(kind.compares, (None, embedded))
            scorer = make_scorer(name, query, others, {**parts, "similarity": similarity})
            of_items = items if vectors is embedded else vectors.items[:, columns]
            forward, backward = rank_items(scorer, vectors.rows[asking], owners, of_items[kept], seen[kept], kept)
            # Conditioning on what is shown is what filling does for the others.
            about = {"scorer": name, "calibrated": calibrated or name == "imputer-likelihood", "gallery_scenario": scenario}
            about["unserved"] = int((~scorer.serves(seen[kept])).sum())
            for direction, ranks, owner in (
                ({"query": query, "gallery": joint, "side": "gallery"}, forward, owners),
                ({"query": joint, "gallery": query, "side": "query"}, backward, kept),
            ):
                left_out = int((ranks.positives == 0).sum())
                made.append(
                    score_rows(
                        ranks, owner, embedded.ids, embedded.group, patterns, **direction, **about, without_positive=left_out
                    )
                )
    return made


def _calibrated(
    embedded: Embeddings, imputer: Any, columns: list[int], mask: Bool[Tensor, "n m"]
) -> tuple[Float[Tensor, "n m d"], Bool[Tensor, "n m"]]:
    """Items with gaps filled from what they show; the modality of the queries stays hidden from the imputer."""
    everything = torch.zeros_like(embedded.mask)
    everything[:, columns] = mask
    filled = embedded.filled(imputer, everything)[:, columns]
    return filled, mask.any(dim=1, keepdim=True).expand_as(mask)


def curve_table(curves: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """`recall_table` with one row per curve and scenario, and beside it: `rate`, the share that `random` hides (0 for 'full'; NaN for other
    scenarios), `shown`, the mean number of modalities an item shows, candidates, unserved and without_positive."""
    by = [*CURVE, "gallery_scenario"]
    table = recall_table(curves, by, generator)
    number = curves["pattern"].map(lambda name: 0 if name == "none" else name.count("+") + 1)
    groups = curves.assign(shown=number).groupby(by, sort=False)
    more = groups[["candidates", "unserved", "without_positive"]].first().assign(shown=groups["shown"].mean())
    return table.assign(rate=[_rate(name) for name in table["gallery_scenario"]]).join(more, on=by)


def aggregation_gain(curves: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Recall@1 of all modalities of an item together minus that of its best single modality, in percent, with interval and p.

    The best single modality is chosen by its mean on the same queries, which favours it a little. One row per scenario and per curve that is not
    itself a single modality; the single is scored alike (`family`) and uncalibrated, as it would be used alone.
    """
    import pandas as pd

    table = []
    alone = curves["scorer"].map(is_single)
    for (query, gallery, side, scenario), part in curves.groupby(["query", "gallery", "side", "gallery_scenario"], sort=False):
        singles = dict(list(part[alone.loc[part.index] & ~part["calibrated"]].groupby("scorer", sort=False)))
        means = {name: float(hits(rows, 1).mean()) for name, rows in singles.items()}
        for (scorer, calibrated), rows in part[~alone.loc[part.index]].groupby(["scorer", "calibrated"], sort=False):
            rivals = [name for name in means if family(name) == family(scorer)]
            if not rivals:
                continue
            best = max(rivals, key=lambda name: means[name])
            found = compare(100 * hits(rows, 1), 100 * hits(singles[best], 1), generator, rows["group"].to_numpy())
            table.append(
                {
                    "query": query, "gallery": gallery, "side": side, "gallery_scenario": scenario, "scorer": scorer,
                    "calibrated": calibrated, "joint": 100 * float(hits(rows, 1).mean()), "best_single": best.partition(":")[2],
                    "single": 100 * means[best], "gain": found.value, "low": found.low, "high": found.high, "p": found.p, "queries": len(rows),
                }
            )  # fmt: skip
    return pd.DataFrame(table)


def _rate(scenario: str) -> float:
    if scenario == "full":
        return 0.0
    name, _, rate = scenario.partition(":")
    try:
        return float(rate) if name == "random" else float("nan")
    except ValueError:  # a chain of scenarios has no single rate
        return float("nan")
