"""Retrieval when modalities are missing at test time: ranks a query, for every scorer, scenario, and with gaps filled or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.missingness import apply_scenario, pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.retrieval import Ranks, discounted_gain, expected_rank, rank_items, recall, reciprocal_rank
from calmrl_lab.evaluation.run_space import Embeddings, RunSpace
from calmrl_lab.evaluation.significance import compare, interval
from calmrl_lab.registry import nearest
from calmrl_lab.scorers._names import OF_EVIDENCE, family, is_single
from calmrl_lab.scorers.base import make_scorer

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.runs.run import Run

RATES = (0.25, 0.5, 0.75, 0.9)
SCORERS = ("centroid", "anchor")
# Scorers that condition on what is shown: gaps are no gaps to them.
_UNFILLED = ("likelihood", *OF_EVIDENCE)
# What makes one curve: rows that agree in these differ only in the scenario.
CURVE = ("query", "gallery", "side", "scorer", "calibrated")


def default_scenarios(modalities: Sequence[str]) -> list[str]:
    """Nothing hidden, nested random masks at 25/50/75/90 %, and every modality dropped in turn (where another is left)."""
    drops = [f"drop:{m}" for m in modalities] if len(modalities) > 1 else []
    return ["full", *(f"random:{rate:g}" for rate in RATES), *drops]


def missing_curves(
    embedded: Embeddings,
    imputer: Any | None = None,
    scorers: Sequence[str] = SCORERS,
    scenarios: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    seed: int = 0,
    objective: Any = None,
) -> pd.DataFrame:
    """A row a query: one modality asks for items that show any subset of the others (side 'gallery' misses), and back (side 'query').

    Scenarios hide modalities of the items, never of the modality that asks; their masks are the same for every scorer, with and
    without calibration, and nested over the rates of `random`. Beside the `scorers`, every single modality is scored alike
    (`cosine:<modality>`, `overlap:<modality>`), for `aggregation_gain`. With a fitted `imputer`, everything is computed a second time with
    the items' gaps filled from what they show (`calibrated`); 'likelihood' needs a PPCA of the embeddings, 'overlap' and 'both' one of the
    features (`embedded.evidence`), and they are computed once, as they condition on what is shown. 'fused' needs a trained `objective` that
    fuses, and is computed for the modality that it asks with. Items that show nothing rank last and, as queries, guess.

    Columns: query, gallery, side, scorer, calibrated, gallery_scenario, item, group, pattern (shown by the item), greater, equal,
    candidates, positives, unserved (candidates or queries that show nothing the scorer can use), without_positive (queries that were left
    out, because nothing in the gallery is their item).
    Raises CalmrlError for unknown modalities, scorers and scenarios, and for a query modality that no item shares.
    """
    import pandas as pd

    asking = objective.modalities[objective.query] if hasattr(objective, "fused") else None
    if "fused" in scorers and asking is not None and asking not in (queries or embedded.modalities):
        raise CalmrlError(
            f"scorer 'fused': the fusion heads of this run were trained for queries of '{asking}'", hint=f"--query {asking}"
        )
    parts = []
    for query in dict.fromkeys(queries or embedded.modalities):
        if query not in embedded.modalities:
            raise CalmrlError(
                f"there is no modality '{query}' to ask with{nearest(query, list(embedded.modalities))}",
                hint=f"there are: {', '.join(embedded.modalities)}",
            )
        others = [m for m in embedded.modalities if m != query]
        for scenario in dict.fromkeys(scenarios or default_scenarios(others)):
            parts += _scenario_parts(embedded, imputer, objective, scorers, scenario, query, others, seed)
    return pd.concat(parts, ignore_index=True)


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

    `scorers` default to centroid and anchor for runs that compare pairs by cosine, and to the run's own score (overlap or both) for the
    others. Gaps are filled by the run's own imputer, or by `impute` fitted on the training embeddings after the fact; a run with neither has
    no calibrated rows.
    """
    space = RunSpace.open(run, device=device)
    own = space.run.config.score
    scorers = scorers or (SCORERS if own == "cosine" else (own,))
    embedded = space.embed(split, evidence=any(family(name) in OF_EVIDENCE for name in scorers))
    objective = space.run.load_objective() if "fused" in scorers else None
    frame = missing_curves(embedded, space.imputer(impute), scorers, scenarios, queries, space.run.config.seed, objective)
    with space.run.writing():
        space.run.write_frame(space.run.CURVES, frame)
    return frame


def _scenario_parts(
    embedded: Embeddings,
    imputer: Any | None,
    objective: Any,
    scorers: Sequence[str],
    scenario: str,
    query: str,
    others: list[str],
    seed: int,
) -> list[pd.DataFrame]:
    asking = embedded.modalities.index(query)
    columns = [embedded.modalities.index(m) for m in others]
    natural = embedded.mask[:, columns].cpu().numpy()
    shown, keep = apply_scenario(scenario, embedded.ids, others, natural, seed)
    if not keep.any():
        raise CalmrlError(f"scenario '{scenario}' leaves no item in the gallery")
    kept = torch.from_numpy(np.flatnonzero(keep)).to(embedded.mask.device)
    mask = torch.from_numpy(shown).to(embedded.mask.device)
    owners = embedded.owners[asking]
    if not bool(torch.isin(owners, kept).any()):
        raise CalmrlError(f"no item of the gallery has modality '{query}', so nothing can be asked with it")
    patterns = np.asarray(pattern_names(shown, others))
    made: list[pd.DataFrame] = []
    views = [(False, embedded.items[:, columns], mask)]
    if imputer is not None:
        views.append((True, *_calibrated(embedded, imputer, columns, mask)))
    singles = [f"{kind}:{m}" for kind in dict.fromkeys(map(family, scorers)) for m in others]
    for calibrated, items, seen in views:
        for name in dict.fromkeys([*scorers, *singles]):
            kind = name.partition(":")[0]
            if kind in _UNFILLED and calibrated:
                continue
            if name == "fused" and hasattr(objective, "fused") and objective.modalities[objective.query] != query:
                continue
            scorer = make_scorer(name, query, others, **_options(kind, embedded, imputer, objective))
            rows = embedded.rows[asking]
            vectors, asked = items, rows
            if kind in OF_EVIDENCE and embedded.evidence is not None:
                evidence = embedded.evidence
                vectors = torch.cat([evidence.items[:, columns], items.double()], dim=2)
                asked = torch.cat([evidence.rows[asking], rows.double()], dim=1)
            forward, backward = rank_items(scorer, asked, owners, vectors[kept], seen[kept], kept)
            unserved = int((~scorer.serves(seen[kept])).sum())
            # Conditioning on what is shown is what filling does for the others.
            about = {"scorer": name, "calibrated": calibrated or name == "likelihood", "gallery_scenario": scenario}
            joint = "+".join(others)
            for direction, ranks, owner in (
                ({"query": query, "gallery": joint, "side": "gallery"}, forward, owners),
                ({"query": joint, "gallery": query, "side": "query"}, backward, kept),
            ):
                made.append(_rows(embedded, ranks, owner, patterns, {**direction, **about}, unserved))
    return made


def _options(kind: str, embedded: Embeddings, imputer: Any | None, objective: Any) -> dict[str, Any]:
    """What a scorer needs of the run beside vectors."""
    if kind in ("likelihood", "fused"):
        return {"imputer": imputer} if kind == "likelihood" else {"objective": objective}
    if kind not in OF_EVIDENCE:
        return {}
    if embedded.evidence is None:
        raise CalmrlError(
            f"scorer '{kind}' compares by the PPCA that heads start from, and this run has none",
            hint="train with --init ppca, or use another scorer",
        )
    return {"maps": embedded.evidence.maps} | ({"weight": embedded.evidence.weight} if kind == "both" else {})


def _calibrated(
    embedded: Embeddings, imputer: Any, columns: list[int], mask: Bool[Tensor, "n m"]
) -> tuple[Float[Tensor, "n m d"], Bool[Tensor, "n m"]]:
    """Items with gaps filled from what they show; the modality that asks stays hidden from the imputer."""
    everything = torch.zeros_like(embedded.mask)
    everything[:, columns] = mask
    filled = embedded.filled(imputer, everything)[:, columns]
    return filled, mask.any(dim=1, keepdim=True).expand_as(mask)


def _rows(
    embedded: Embeddings, ranks: Ranks, owner: Tensor, patterns: np.ndarray, about: dict[str, Any], unserved: int
) -> pd.DataFrame:
    import pandas as pd

    asked = ranks.positives > 0
    item = owner.cpu().numpy()[asked]
    return pd.DataFrame(
        {
            **about,
            "item": embedded.ids[item],
            "group": embedded.group[item],
            "pattern": patterns[item],
            **{name: getattr(ranks, name)[asked] for name in ("greater", "equal", "candidates", "positives")},
            "unserved": unserved,
            "without_positive": int((~asked).sum()),
        }
    )


def curve_table(curves: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """A row a curve and scenario: recalls in percent with intervals over groups, median rank, MRR, nDCG, counts.

    `rate` is the share that `random` hides (0 for 'full'; NaN for other scenarios); `shown` the mean number of modalities an item shows.
    """
    import pandas as pd

    table = []
    for key, part in curves.groupby([*CURVE, "gallery_scenario"], sort=False):
        greater, equal = part["greater"].to_numpy(), part["equal"].to_numpy()
        row: dict[str, Any] = dict(zip([*CURVE, "gallery_scenario"], key, strict=True))
        row["rate"] = _rate(row["gallery_scenario"])
        for k in (1, 5, 10):
            found = interval(100 * recall(greater, equal, k), generator, part["group"].to_numpy(), top=100)
            row |= {f"recall_at_{k}": found.value, f"low_{k}": found.low, f"high_{k}": found.high}
        row["median_rank"] = float(np.median(expected_rank(greater, equal)))
        row["mrr"] = float(reciprocal_rank(greater, equal).mean())
        row["ndcg"] = float(discounted_gain(greater, equal).mean())
        row["shown"] = float(np.mean([0 if name == "none" else name.count("+") + 1 for name in part["pattern"]]))
        row["queries"] = len(part)
        row |= {name: int(part[name].iloc[0]) for name in ("candidates", "unserved", "without_positive")}
        table.append(row)
    return pd.DataFrame(table)


def aggregation_gain(curves: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Recall@1 of all modalities of an item together minus that of its best single modality, in percent, with interval and p.

    The best single modality is chosen by its mean on the same queries, which favours it a little. A row a curve that is not itself
    a single modality, and scenario; the single is scored alike (`family`) and uncalibrated, as it would be used alone.
    """
    import pandas as pd

    table = []
    alone = curves["scorer"].map(is_single)
    for (query, gallery, side, scenario), part in curves.groupby(["query", "gallery", "side", "gallery_scenario"], sort=False):
        singles = dict(list(part[alone.loc[part.index] & ~part["calibrated"]].groupby("scorer", sort=False)))
        means = {name: float(_first(rows).mean()) for name, rows in singles.items()}
        for (scorer, calibrated), rows in part[~alone.loc[part.index]].groupby(["scorer", "calibrated"], sort=False):
            rivals = [name for name in means if family(name) == family(scorer)]
            if not rivals:
                continue
            best = max(rivals, key=lambda name: means[name])
            found = compare(100 * _first(rows), 100 * _first(singles[best]), generator, rows["group"].to_numpy())
            table.append(
                {
                    "query": query, "gallery": gallery, "side": side, "gallery_scenario": scenario, "scorer": scorer,
                    "calibrated": calibrated, "joint": 100 * float(_first(rows).mean()), "best_single": best.partition(":")[2],
                    "single": 100 * means[best], "gain": found.value, "low": found.low, "high": found.high, "p": found.p, "queries": len(rows),
                }
            )  # fmt: skip
    return pd.DataFrame(table)


def _first(rows: pd.DataFrame) -> Float[np.ndarray, " q"]:
    return recall(rows["greater"].to_numpy(), rows["equal"].to_numpy(), 1)


def _rate(scenario: str) -> float:
    if scenario == "full":
        return 0.0
    name, _, rate = scenario.partition(":")
    try:
        return float(rate) if name == "random" else float("nan")
    except ValueError:  # a chain of scenarios has no single rate
        return float("nan")
