"""Errors of imputers, a row per entry, to the tables of docs/imputation.md: with intervals over groups of items and drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from calmrl_lab.completion.reliability import Reliability, reliability
from calmrl_lab.reporting.content.reliability_figure import reliability_figure
from calmrl_lab.runtime import console
from calmrl_lab.runtime.atomic_files import write_atomically

# What `calmrl-lab impute` uses unless told otherwise.
DEFAULT = "ppca-auto"
PLAIN = "ppca"
_REPLICATES, _LEVEL = 1000, 95.0


class Sums:
    """Summed squared errors of one store and pattern of gaps: imputer -> [seeds, groups, modalities], and those of the mean.

    Groups of items and drawings of the gaps are drawn anew together (Owen 2007), the same ones for every imputer, so that
    differences between imputers are paired.
    """

    def __init__(self, part: pd.DataFrame) -> None:
        self.modalities = list(dict.fromkeys(part["modality"]))
        groups, self.seeds = np.unique(part["group"]), np.unique(part["seed"])
        place = (
            np.searchsorted(self.seeds, part["seed"]),
            np.searchsorted(groups, part["group"]),
            part["modality"].map({m: j for j, m in enumerate(self.modalities)}).to_numpy(),
        )
        self.shape = (len(self.seeds), len(groups), len(self.modalities))
        self.error = {
            name: self._summed(part["squared_error"].to_numpy()[rows], [axis[rows] for axis in place])
            for name, rows in part.groupby("imputer", sort=False).indices.items()
        }
        some = part.groupby("imputer", sort=False).indices[next(iter(self.error))]
        self.mean = self._summed(part["mean_error"].to_numpy()[some], [axis[some] for axis in place])
        generator = np.random.default_rng(0)
        drawn = [generator.multinomial(n, np.full(n, 1 / n), size=_REPLICATES) for n in self.shape[:2]]
        self.weights = [np.concatenate([np.ones((1, n)), w]) for n, w in zip(self.shape[:2], drawn, strict=True)]

    def _summed(self, values: np.ndarray, place: Sequence[np.ndarray]) -> np.ndarray:
        result = np.zeros(self.shape)
        np.add.at(result, tuple(place), values)
        return result

    def relative(self, name: str) -> np.ndarray:
        """Error over that of the mean [1 + replicates, modalities]; the first row is the estimate."""
        over, under = (np.einsum("bs,bg,sgm->bm", *self.weights, sums) for sums in (self.error[name], self.mean))
        return over / under


def summary(values: np.ndarray) -> dict[str, float]:
    """Estimate and interval of what `relative` gave, or of a function of it."""
    low, high = np.percentile(values[1:], [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def tables(frame: pd.DataFrame) -> dict[str, Any]:
    """All that is reported, as one JSON document: `rows` a store, pattern and imputer; `worse_than_mean`; `against_plain`;
    `reliability`."""
    rows, against = [], []
    for (store, gaps), part in frame.groupby(["store", "gaps"], sort=False):
        sums = Sums(part)
        relative = {name: sums.relative(name) for name in sums.error}
        for name, own in part.groupby("imputer", sort=False):
            ratios, worst = relative[name], int(np.argmax(relative[name][0]))
            rows.append({
                "store": store, "gaps": gaps, "imputer": name, "error": summary(ratios.mean(axis=1)),
                "worst_modality": sums.modalities[worst], "worst": summary(ratios[:, worst]),
                "modalities": {m: summary(ratios[:, j]) for j, m in enumerate(sums.modalities)},
                "predicted_over_real": _predicted_over_real(own),
                "seconds": float(own.groupby("seed")["seconds"].first().mean()), "seeds": len(sums.seeds),
            })  # fmt: skip
            for plain in (p for p in (PLAIN, "ppca:ridge=300") if p in relative and p != name):
                difference = summary((ratios - relative[plain]).mean(axis=1))
                against.append({"store": store, "gaps": gaps, "imputer": name, "plain": plain, **difference})
    return {
        "rows": rows,
        "default": DEFAULT,
        "worse_than_mean": [
            {"store": row["store"], "gaps": row["gaps"], "modality": modality, **ratio}
            for row in rows
            if row["imputer"] == DEFAULT
            for modality, ratio in row["modalities"].items()
            if ratio["value"] > 1
        ],
        "against_plain": against,
        "reliability": list(_reliabilities(frame)),
    }


def _predicted_over_real(own: pd.DataFrame) -> float | None:
    if own["predicted_error"].isna().any():
        return None
    sums = own.groupby("modality")[["predicted_error", "squared_error"]].sum()
    return float((sums["predicted_error"] / sums["squared_error"]).mean())


def _reliabilities(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (store, name), found in reliabilities(frame).items():
        yield {
            "store": store, "imputer": name, "predicted": found.predicted.tolist(), "real": found.real.tolist(),
            "count": found.count.tolist(), "ratio": found.ratio, "miscalibration": found.miscalibration,
        }  # fmt: skip


def reliabilities(frame: pd.DataFrame) -> dict[tuple[str, str], Reliability]:
    """Entries in five bins of predicted error per store and imputer, both errors over the modality's mean-imputation error, so that
    modalities can share a bin."""
    result = {}
    for (store, name), own in frame.groupby(["store", "imputer"], sort=False):
        if not own["predicted_error"].isna().any():
            scale = own.groupby(["gaps", "seed", "modality"])["mean_error"].transform("mean").to_numpy()
            predicted, real = (own[column].to_numpy() / scale for column in ("predicted_error", "squared_error"))
            result[store, name] = reliability(predicted, real, bins=5)
    return result


def draw(frame: pd.DataFrame, folder: Path) -> None:
    """predicted-error-<store>.svg in `folder`: what the default and plain PPCA promise, and what came of it."""
    found = reliabilities(frame)
    for store in dict.fromkeys(store for store, _ in found):
        shown = {name: found[store, name] for name in (DEFAULT, PLAIN) if (store, name) in found}
        if shown:
            figure = reliability_figure(shown, f"predicted-error-{store}")
            write_atomically(folder / f"{figure.name}.svg", figure.svg().encode())


def markdown(found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    rows = found["rows"]
    stores = list(dict.fromkeys(row["store"] for row in rows))
    patterns = list(dict.fromkeys(row["gaps"] for row in rows))
    parts = [_of_store(store, rows, patterns) for store in stores]
    return "\n".join([*parts, _against_mean(found), _against_plain(found, stores, patterns), _reliability_table(found)])


def _of_store(store: str, rows: Sequence[dict[str, Any]], patterns: Sequence[str]) -> str:
    """Errors, worst modalities, promises and seconds of every imputer on one store, the best first."""
    names = list(dict.fromkeys(row["imputer"] for row in rows if row["store"] == store))
    by = {(row["gaps"], row["imputer"]): row for row in rows if row["store"] == store}
    held = {name: [by[gaps, name] for gaps in patterns] for name in names}
    names.sort(key=lambda name: sum(row["error"]["value"] for row in held[name]))
    seeds, n = max(row["seeds"] for row in by.values()), len(patterns)

    def promise(name: str, j: int) -> str:
        if j >= n:
            return f"{held[name][j - n]['seconds']:.1f}"
        ratio = held[name][j]["predicted_over_real"]
        return "-" if ratio is None else f"{ratio:.2f}"

    def worst(name: str, j: int) -> str:
        row = held[name][j]
        return f"{row['worst']['value']:.3f} {row['worst_modality']}"

    return "\n".join(
        [
            f"### {store}: held-out error over that of the mean, {seeds} drawing{'s' if seeds != 1 else ''} of the gaps\n",
            _grid("imputer", patterns, names, lambda name, j: _interval(held[name][j]["error"])),
            f"\n### {store}: worst modality of each\n",
            _grid("imputer", patterns, names, worst),
            f"\n### {store}: predicted over real error, processor seconds to fit and fill\n",
            _grid("imputer", [f"{what} {p}" for what in ("predicted/real", "s") for p in patterns], names, promise),
            "",
        ]
    )


def _grid(corner: str, columns: Sequence[str], names: Sequence[str], cell: Callable[[str, int], str]) -> str:
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cell(name, j) for j in range(len(columns))) + " |" for name in names]
    return "\n".join(lines)


def _interval(row: dict[str, float]) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _against_mean(found: dict[str, Any]) -> str:
    counted = sum(len(row["modalities"]) for row in found["rows"] if row["imputer"] == found["default"])
    if not counted:
        return ""
    lines = [f"### Where `{found['default']}` is above the mean\n"]
    worse = found["worse_than_mean"]
    for row in worse:
        clear = "clearly worse" if row["low"] > 1 else "within chance: the interval includes 1"
        lines.append(f"* {row['store']}, {row['gaps']}, {row['modality']}: {_interval(row)}, {clear}")
    return "\n".join([*lines, f"\n{len(worse)} of {counted} combinations of store, gaps and modality are above 1.\n"])


def _against_plain(found: dict[str, Any], stores: Sequence[str], patterns: Sequence[str]) -> str:
    """Relatives of PPCA minus PPCA under the same prior, in the unit of the first table."""
    pairs = [(name, plain) for name, plain in _relatives(found)]
    if not pairs:
        return ""
    lines = ["### Relatives of PPCA against plain PPCA: difference in error (below 0 is better than PPCA)\n"]
    held = {(row["store"], row["gaps"], row["imputer"], row["plain"]): row for row in found["against_plain"]}
    columns = [f"{store} {gaps}" for store in stores for gaps in patterns]
    keys = [(store, gaps) for store in stores for gaps in patterns]

    def cell(label: str, j: int) -> str:
        name, plain = label.split(" against ")
        row = held.get((*keys[j], name, plain))
        if row is None:
            return "-"
        mark = "**" if row["high"] < 0 else ""
        return f"{mark}{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}){mark}"

    lines.append(_grid("imputer against", columns, [f"{name} against {plain}" for name, plain in pairs], cell))
    return "\n".join([*lines, "\nBold: the whole interval is below 0.\n"])


def _relatives(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(row["imputer"] for row in found["against_plain"]))
    relatives = [name for name in names if name.split(":")[0] in ("ppca-private", "ppca-student", "ppca-mixture")]
    paired = [(name, "ppca:ridge=300" if ":ridge" in name else PLAIN) for name in relatives]
    return [*paired, *((name, PLAIN) for name in (DEFAULT,) if name in names)]


def _reliability_table(found: dict[str, Any]) -> str:
    rows = found["reliability"]
    most = max((len(row["predicted"]) for row in rows), default=0)
    lines = ["### Predicted against real error, entries in five bins of predicted error (both over the error of the mean)\n"]

    def cell(label: str, j: int) -> str:
        row = next(row for row in rows if f"{row['store']} {row['imputer']}" == label)
        if j == most:
            return f"{row['ratio']:.2f}"
        return f"{row['predicted'][j]:.2f} / {row['real'][j]:.2f}" if j < len(row["predicted"]) else "-"

    columns = [*(f"bin {j + 1}" for j in range(most)), "real over predicted"]
    return (
        "\n".join([*lines, _grid("predicted / real", columns, [f"{row['store']} {row['imputer']}" for row in rows], cell)])
        + "\n"
    )


def show(found: dict[str, Any]) -> None:
    table = Table(
        title="Held-out squared error over that of the mean; predicted over real error; processor seconds to fit and fill"
    )
    for heading in ("store", "gaps", "imputer", "error", "worst modality", "predicted/real", "seconds"):
        table.add_column(heading, justify="left" if heading in ("store", "gaps", "imputer") else "right")
    for row in sorted(found["rows"], key=lambda row: (row["store"], row["gaps"], row["error"]["value"])):
        predicted = "-" if row["predicted_over_real"] is None else f"{row['predicted_over_real']:.2f}"
        worst = f"{row['worst']['value']:.3f} {row['worst_modality']}"
        numbers = (f"{row['error']['value']:.3f}", worst, predicted, f"{row['seconds']:.1f}")
        table.add_row(row["store"], row["gaps"], row["imputer"], *numbers)
    console.out.print(table)
    worse = found["worse_than_mean"]
    places = "; ".join(f"{row['store']} {row['gaps']} {row['modality']} {_interval(row)}" for row in worse)
    console.out.print(f"{found['default']} is worse than the mean " + (f"at: {places}" if worse else "nowhere"))
