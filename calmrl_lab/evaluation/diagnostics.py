"""Diagnostics of embeddings: modality gap, uniformity, alignment, spectrum, reliability, slices of queries, chance level."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.anchors.gate import Gate
from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.score_rows import chance, expected_ranks, hits
from calmrl_lab.evaluation.significance import interval
from calmrl_lab.linalg.spectrum import spectrum
from calmrl_lab.model.embeddings import Embeddings

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 2048
# One-sided p above which a direction is taken to be at chance: loud rather than quiet.
CHANCE_P = 0.01


def modality_pairs(embedded: Embeddings) -> pd.DataFrame:
    """A row per pair of modalities, over the items that show both: modality_a, modality_b, items, and

    gap: distance between the means of the two modalities (Liang et al., NeurIPS 2022); 0 if they share the sphere evenly.
    alignment: mean squared distance of an item's two embeddings (Wang and Isola, ICML 2020); 0 is perfect, 2 is orthogonal.
    cosine: their mean cosine, and cosine_others: that of embeddings of different items; what is left between them is what retrieval has.
    NaN where no item shows both (cosine_others: fewer than two).
    """
    import pandas as pd

    table = []
    for a, b in itertools.combinations(range(len(embedded.modalities)), 2):
        both = embedded.mask[:, a] & embedded.mask[:, b]
        left, right = (embedded.items[both, j].double() for j in (a, b))
        n = len(left)
        row: dict[str, Any] = {"modality_a": embedded.modalities[a], "modality_b": embedded.modalities[b], "items": n}
        if n:
            own = (left * right).sum(dim=1)
            everything = float(left.sum(dim=0) @ right.sum(dim=0))
            row["gap"] = float((left.mean(dim=0) - right.mean(dim=0)).norm())
            row["alignment"] = float((left - right).square().sum(dim=1).mean())
            row["cosine"] = float(own.mean())
            row["cosine_others"] = (everything - float(own.sum())) / (n * (n - 1)) if n > 1 else np.nan
        else:
            row |= dict.fromkeys(("gap", "alignment", "cosine", "cosine_others"), np.nan)
        table.append(row)
    return pd.DataFrame(table)


def uniformity(embeddings: Float[Tensor, "n d"], scale: float = 2.0) -> float:
    """log of the mean of exp(-scale ||x - y||^2) over pairs of different rows (Wang and Isola, ICML 2020).

    0 if all rows coincide; about -2 scale (1 - 1/d) if they fill the sphere. NaN for fewer than two rows. Exact, in blocks.
    """
    n = len(embeddings)
    if n < 2:
        return float("nan")
    wide = embeddings.double()
    norms = wide.square().sum(dim=1)
    total = torch.zeros((), dtype=torch.float64, device=wide.device)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        distances = (norms[rows, None] + norms[None, :] - 2 * wide[rows] @ wide.T).clamp_min(0.0)
        total += (-scale * distances).exp().sum()
    # Every row meets itself once, at distance 0.
    return float(torch.log((total - n).clamp_min(1e-300) / (n * (n - 1))))


def modality_table(embedded: Embeddings) -> pd.DataFrame:
    """A row per modality: items that show it, uniformity, norm of its mean (1 is a single point), effective rank of its covariance.

    Effective rank is exp of the entropy of the normalised eigenvalues (Roy and Vetterli, 2007): how many directions are used.
    """
    import pandas as pd

    table = []
    for index, name in enumerate(embedded.modalities):
        rows = embedded.items[embedded.mask[:, index], index].double()
        values = torch.linalg.svdvals(rows - rows.mean(dim=0)).square() if len(rows) > 1 else torch.zeros(0)
        share = values / values.sum().clamp_min(1e-300)
        rank = float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum())) if len(rows) > 1 else float("nan")
        mean = float(rows.mean(dim=0).norm()) if len(rows) else float("nan")
        row = {"modality": name, "items": len(rows), "uniformity": uniformity(rows), "mean_norm": mean, "effective_rank": rank}
        table.append(row)
    return pd.DataFrame(table)


def item_spectrum(embedded: Embeddings) -> pd.DataFrame:
    """A row per item: item, group, pattern, shown, singular values s1 ... sk of what it shows, share (s1^2 of the total), eigengap (s1^2 - s2^2)."""
    import pandas as pd

    values = spectrum(embedded.items.double(), embedded.mask).singular_values.cpu().numpy()
    energy = values**2
    shown = embedded.mask.sum(dim=1).cpu().numpy()
    second = energy[:, 1] if values.shape[1] > 1 else np.zeros(len(values))
    return pd.DataFrame(
        {
            "item": embedded.ids,
            "group": embedded.group,
            "pattern": pattern_names(embedded.mask.cpu().numpy(), embedded.modalities),
            "shown": shown,
            **{f"s{j + 1}": values[:, j] for j in range(values.shape[1])},
            "share": np.divide(energy[:, 0], energy.sum(axis=1), out=np.full(len(values), np.nan), where=shown > 0),
            "eigengap": energy[:, 0] - second,
        }
    )


def spectrum_by_pattern(embedded: Embeddings) -> pd.DataFrame:
    """`item_spectrum` in the mean over the items of each pattern: pattern, items, s1 ... sk, share, eigengap."""
    frame = item_spectrum(embedded)
    numbers = [name for name in frame.columns if name not in ("item", "group", "pattern", "shown")]
    grouped = frame.groupby("pattern", sort=False)
    table = grouped[numbers].mean()
    table.insert(0, "items", grouped.size())
    return table.sort_values("items", ascending=False, kind="stable").reset_index()


def shifts_by_pattern(anchors: pd.DataFrame) -> pd.DataFrame:
    """Anchor shift before and after calibration and its proven bounds, in the mean over items: pattern, items, shift_observed,
    shift_calibrated, lower, upper, eigengap. `anchors` is a run's anchors.parquet."""
    numbers = ["shift_observed", "shift_calibrated", "lower", "upper", "eigengap"]
    grouped = anchors.groupby("pattern", sort=True)
    table = grouped[numbers].mean()
    table.insert(0, "items", grouped.size())
    return table.reset_index()


def with_predicted_gain(anchors: pd.DataFrame, embedded: Embeddings, imputer: Any) -> pd.DataFrame:
    """`anchors` with predicted_gain, what `imputer` expects calibration to bring an item (cos^2 with its true anchor), as a gate decides by.

    Rows of items that `embedded` does not have get NaN; a column that is there already (gated runs) is kept.
    """
    if "predicted_gain" in anchors.columns:
        return anchors
    place = {item: index for index, item in enumerate(embedded.ids.tolist())}
    gains = np.full(len(anchors), np.nan)
    where = np.array([place.get(item, -1) for item in anchors["item"].tolist()])
    patterns = anchors["pattern"].to_numpy()
    for name in dict.fromkeys(patterns.tolist()):
        rows = np.flatnonzero((patterns == name) & (where >= 0))
        shown = torch.tensor([m in name.split("+") for m in embedded.modalities], device=embedded.mask.device)
        mask = embedded.mask & shown
        gain = Gate.gain(imputer, embedded.items, mask, embedded.filled(imputer, mask)).cpu().numpy()
        gains[rows] = gain[where[rows]]
    return anchors.assign(predicted_gain=gains)


def shifts_by_gain(anchors: pd.DataFrame, bins: int = 5) -> pd.DataFrame:
    """Anchor shift before and after calibration in `bins` of equal size by predicted gain: whether the prediction tells what calibration helps.

    Columns: bin, items, predicted_gain, shift_observed, shift_calibrated (means), closer (percent of the items whose shift fell).
    `anchors` has predicted_gain (`with_predicted_gain`); rows without are left out.
    """
    import pandas as pd

    names = ["bin", "items", "predicted_gain", "shift_observed", "shift_calibrated", "closer"]
    anchors = anchors[anchors["predicted_gain"].notna()]
    gain, before, after = (anchors[name].to_numpy() for name in ("predicted_gain", "shift_observed", "shift_calibrated"))
    table = []
    for number, chosen in enumerate(np.array_split(np.argsort(gain, kind="stable"), min(bins, len(gain)) or 1)):
        if not len(chosen):
            continue
        row = {"bin": number, "items": len(chosen), "predicted_gain": float(gain[chosen].mean())}
        row |= {"shift_observed": float(before[chosen].mean()), "shift_calibrated": float(after[chosen].mean())}
        table.append({**row, "closer": 100 * float((after[chosen] < before[chosen]).mean())})
    return pd.DataFrame(table, columns=names)


def with_anchor_facts(scores: pd.DataFrame, anchors: pd.DataFrame) -> pd.DataFrame:
    """`scores` with the numbers of `anchors` beside them, in the mean over the patterns of an item, to slice by."""
    taken = set(scores.columns) | {"item"}
    numbers = [name for name in anchors.columns if anchors[name].dtype.kind in "fi" and name not in taken]
    return scores.join(anchors.groupby("item")[numbers].mean(), on="item")


def reliability(imputation: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Predicted against true imputation error, in `bins` of equal size by prediction, per imputer and modality.

    Columns: imputer, modality, bin, items, predicted (mean), actual (mean), ratio (actual / predicted: above 1 is over-confidence), and
    correlation (Spearman's, over all entries of imputer and modality; NaN where predictions do not differ). Imputers without predictions are
    left out. `imputation` is a run's imputation.parquet.
    """
    import pandas as pd

    known = imputation[np.isfinite(imputation["predicted_error"].astype(float))]
    table = []
    for (imputer, modality), part in known.groupby(["imputer", "modality"], sort=False):
        predicted = part["predicted_error"].to_numpy(dtype=float)
        actual = part["squared_error"].to_numpy(dtype=float)
        varies = len(part) > 2 and np.ptp(predicted) > 0 and np.ptp(actual) > 0
        correlation = float(part["predicted_error"].rank().corr(part["squared_error"].rank())) if varies else float("nan")
        order = np.argsort(predicted, kind="stable")
        for number, chosen in enumerate(np.array_split(order, min(bins, len(order)))):
            expected, seen = float(predicted[chosen].mean()), float(actual[chosen].mean())
            ratio = seen / expected if expected > 0 else float("nan")
            table.append(
                {
                    "imputer": imputer, "modality": modality, "bin": number, "items": len(chosen), "predicted": expected, "actual": seen,
                    "ratio": ratio, "correlation": correlation,
                }
            )  # fmt: skip
    names = ["imputer", "modality", "bin", "items", "predicted", "actual", "ratio", "correlation"]
    return pd.DataFrame(table, columns=names)


def slices(scores: pd.DataFrame, by: str, generator: np.random.Generator, bins: int = 4, k: int = 1) -> pd.DataFrame:
    """Recall@k (percent, interval over groups) in slices of a scores table: by a column's values, or by `bins` quantiles if it holds numbers.

    `by` is any column, joined by the caller if need be (a predicted gain, say), or 'group_size': how many items a group has.
    Columns: slice, queries, groups, recall, low, high. Rows without a value are a slice of their own. Raises CalmrlError for an unknown column.
    """
    import pandas as pd

    frame = scores
    if by == "group_size":
        frame = scores.assign(group_size=scores.groupby("group")["item"].transform("nunique"))
    if by not in frame.columns:
        raise CalmrlError(
            f"scores have no column '{by}' to slice by", hint=f"they have: {', '.join(map(str, scores.columns))}, group_size"
        )
    values = frame[by]
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > bins:
        values = pd.qcut(values, bins, duplicates="drop")
    table = []
    for name, part in frame.groupby(values, sort=bool(numeric), dropna=False, observed=True):
        found = interval(100 * hits(part, k), generator, part["group"].to_numpy(), top=100)
        row = {"slice": _slice_name(name, part[by]), "queries": len(part), "groups": found.units}
        table.append({**row, "recall": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(table)


def _slice_name(name: Any, values: pd.Series) -> str:
    if hasattr(name, "left"):
        low, high = values.min(), values.max()
        return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return "no value" if name is None or name != name else str(name)


def chance_level(scores: pd.DataFrame) -> pd.DataFrame:
    """Whether each direction is better than a random order: query, gallery, scorer, recall_at_1, chance, z, p, at_chance.

    `chance` is Recall@1 of a random order, in percent. The test compares all ranks, which sees more than Recall@1: under a random order the
    best of P positives among G candidates has mean rank (G + 1) / (P + 1) and variance P (G + 1)(G - P) / ((P + 1)^2 (P + 2)). One-sided;
    queries are taken as independent, so near duplicates make it a little too confident. A direction with p above 0.01 is at chance: wrong
    weights, a wrong pairing of files, or nothing learned.
    """
    import pandas as pd
    from scipy.stats import norm

    table = []
    columns = [name for name in ("query", "gallery", "scorer", "gallery_scenario") if name in scores.columns]
    for key, part in scores.groupby(columns, sort=False):
        g, p = part["candidates"].to_numpy(dtype=float), part["positives"].to_numpy(dtype=float)
        ranks = expected_ranks(part)
        variance = (p * (g + 1) * (g - p) / ((p + 1) ** 2 * (p + 2))).sum()
        z = float(((g + 1) / (p + 1) - ranks).sum() / variance**0.5) if variance > 0 else float("nan")
        tail = float(norm.sf(z)) if np.isfinite(z) else 1.0
        row = dict(zip(columns, key, strict=True))
        row |= {
            "queries": len(part),
            "recall_at_1": 100 * float(hits(part, 1).mean()),
            "chance": 100 * float(chance(part, 1).mean()),
        }
        table.append({**row, "z": z, "p": tail, "at_chance": tail > CHANCE_P})
    return pd.DataFrame(table)


def chance_warning(scores: pd.DataFrame) -> str | None:
    """A warning if directions are at chance level, and another if they are worse, else None."""
    from scipy.stats import norm

    levels = chance_level(scores)
    reversed_order = levels["z"] < -norm.isf(CHANCE_P)
    said = []
    if reversed_order.any():
        said.append(
            f"BACK TO FRONT: {_named(levels, reversed_order)} worse than a random order, the best candidates last; "
            "a modality is mirrored or its scores have the wrong sign"
        )
    at_chance = levels["at_chance"] & ~reversed_order
    if at_chance.any():
        said.append(
            f"AT CHANCE LEVEL: {_named(levels, at_chance)} not to be told from a random order; "
            "check that the right weights and the right store were loaded"
        )
    return ". ".join(said) or None


def _named(levels: pd.DataFrame, chosen: pd.Series) -> str:
    """How many directions are chosen, the first of them by name, and the verb."""
    names = [f"{row.query}->{row.gallery}" for row in levels[chosen].itertuples()]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} of {len(levels)} directions ({', '.join(names[:4])}{more}) {'is' if len(names) == 1 else 'are'}"
