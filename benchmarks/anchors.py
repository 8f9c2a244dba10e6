"""Anchors of trained runs where the truth is known: what imputation brings, what it promised, and how much the bounds say.

    calmrl-lab bench anchors runs/mine/calmrl-s0                                  a run of train-heads that imputes with PPCA; seconds
    calmrl-lab bench anchors runs/a runs/b --write docs/imputation.md             put the tables between the marks of a page

Complete test items are shown under every pattern of gaps that training had, each pattern as often as there. sin² is that of the angle to
the anchor of the complete set; intervals (95 %) are over groups of items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import _marks
import _script

from calmrl_lab.anchors import bounds as bounds
from calmrl_lab.anchors.bayes import anchor_posterior, calibration_gain
from calmrl_lab.data.table import load_table
from calmrl_lab.data.training_data import splits_of, training_items
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.significance import interval
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.spectrum import spectrum
from calmrl_lab.model.encode import stack
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime import console
from calmrl_lab.store import FeatureStore

# Bound, and where it says nothing about a shift in [0, sqrt 2].
_BOUNDS: dict[str, tuple[Callable[[bounds.ShiftTerms], Tensor], Callable[[Tensor], Tensor]]] = {
    "lower, as printed": (bounds.lower_printed, lambda found: found <= 0),
    "lower, by ratio": (bounds.lower_ratio, lambda found: found <= 0),
    "lower, two-sided": (bounds.lower_sandwich, lambda found: found <= 0),
    "upper, two-sided": (bounds.upper_sandwich, lambda found: found >= 2**0.5 - 1e-9),
    "upper, by gap": (bounds.upper_gap, lambda found: found >= 2**0.5 - 1e-9),
    "upper, by rotation": (bounds.upper_rotation, lambda found: found >= 2**0.5 - 1e-9),
    "upper, as printed": (bounds.upper_printed, lambda found: found >= 2**0.5 - 1e-9),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of train-heads --impute ppca")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marks of this Markdown file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = [measured(Run.open(path)) for path in options.runs]
    if options.write:
        _marks.put(options.write, "anchors", markdown(found))
    console.emit({"runs": found}, options.json, lambda: show(found))


def measured(run: Run) -> dict[str, Any]:
    """What the tables say of one run. Raises CalmrlError for one that does not impute with PPCA, or without complete test items."""
    imputer = run.model().imputer
    if not isinstance(imputer, PPCA):
        raise CalmrlError(f"run '{run.path}' does not impute with PPCA", hint="train one with --impute ppca")
    truth, groups, patterns, shares = _shown(run)
    parts = [_under(imputer, truth, pattern.expand(len(truth), -1)) for pattern in patterns]

    def everywhere(name: str) -> np.ndarray:
        """Mean over patterns of what was found, a value per item."""
        return np.stack([part[name].double().numpy() for part in parts], axis=1) @ shares

    def mean(name: str) -> dict[str, float]:
        estimate = interval(everywhere(name), np.random.default_rng(0), groups)
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    rows = []
    for name in ("observed", "imputed", "Bayes"):
        row: dict[str, Any] = {"anchor": name, "sine": mean(f"sine {name}")}
        if name != "observed":
            promised, real = (torch.cat([part[f"{what} {name}"] for part in parts]) for what in ("promised", "real"))
            row |= {"promised": mean(f"promised {name}"), "real": mean(f"real {name}"), "harmed": mean(f"harmed {name}")}
            row["correlation"] = float(np.corrcoef(promised, real)[0, 1])
        rows.append(row)
    stated = []
    shift = torch.cat([part["shift"] for part in parts])
    for name in (*_BOUNDS, "upper, from what is observed"):
        ratio = torch.cat([part[name] for part in parts]) / shift
        stated.append(
            {"bound": name, "silent": float(everywhere(f"silent {name}").mean()), "over_shift": float(ratio.median())}
        )
    small = {name: float(everywhere(name).mean()) for name in ("certified", "small enough", "small enough as printed")}
    return {
        "run": run.name,
        "store": Path(run.config.store).stem,
        "items": len(truth),
        "anchors": rows,
        "bounds": stated,
        **small,
    }


def _shown(run: Run) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """Embeddings [n, k, d] of the complete test items, their groups, the incomplete patterns of training, and the share of each."""
    store, config, model = FeatureStore.open(run.config.store), run.config, run.model()
    table = load_table(store, config.modalities)
    split = splits_of(store, config)
    test = table.select(np.flatnonzero((split == "test") & table.natural_mask().all(dim=1).numpy()))
    if not len(test):
        raise CalmrlError(f"store '{store.path}' has no complete test items", hint="align fewer --modalities")
    patterns, counts = torch.unique(training_items(table, split, config).mask, dim=0, return_counts=True)
    gaps = ~patterns.all(dim=1)
    shares = (counts[gaps] / counts[gaps].sum()).double().numpy()
    return stack(model.encode(test)).double(), test.group, patterns[gaps], shares


def _under(imputer: PPCA, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Everything about the items of `truth` [n, k, d] shown under `mask` [n, k], a value per item."""
    complete, generator = torch.ones_like(mask), torch.Generator().manual_seed(0)
    filled = torch.stack([torch.as_tensor(part) for part in imputer.impute(list(truth.unbind(1)), mask)], dim=1)
    terms = bounds.shift_terms(truth, complete, mask)
    posterior = anchor_posterior(imputer, truth, mask, generator)
    used = {"observed": terms.observed_anchor, "imputed": spectrum(filled, complete).anchor, "Bayes": posterior.anchor}
    result = {f"sine {name}": 1 - (anchor * terms.anchor).sum(dim=1).square() for name, anchor in used.items()}
    promised = {"imputed": calibration_gain(imputer, truth, mask, filled, generator), "Bayes": posterior.gain}
    for name, gain in promised.items():
        real = result["sine observed"] - result[f"sine {name}"]
        result |= {f"promised {name}": gain, f"real {name}": real, f"harmed {name}": (real < 0).double()}
    result["shift"] = bounds.aligned_distance(terms.anchor, terms.observed_anchor)
    hidden = int((~mask[0]).sum())
    found = {name: (bound(terms), says_nothing) for name, (bound, says_nothing) in _BOUNDS.items()}
    found["upper, from what is observed"] = (
        bounds.upper_observed_only(truth, mask, hidden),
        _BOUNDS["upper, as printed"][1],
    )
    for name, (values, says_nothing) in found.items():
        result |= {name: values, f"silent {name}": says_nothing(values).double()}
    error = torch.linalg.matrix_norm(filled - truth, 2)
    each = torch.linalg.vector_norm(filled - truth, dim=2).amax(dim=1)
    result["certified"] = bounds.certified_helpful(filled, complete, mask, error).double()
    result["small enough"] = (error < bounds.helpful_error(terms)).double()
    result["small enough as printed"] = (each < bounds.helpful_error_printed(terms, hidden)).double()
    return result


_ANCHOR_HEADINGS = ("store", "anchor", "sin² to the true one", "gain predicted", "gain real", "harmed", "correlation of gains")
_BOUND_HEADINGS = ("store", "bound on the shift", "says nothing", "median of bound / shift")


def _anchor_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            one["store"],
            row["anchor"],
            _estimate(row["sine"]),
            *([_estimate(row["promised"]), _estimate(row["real"])] if "real" in row else ["", ""]),
            *([f"{row['harmed']['value']:.1%}", f"{row['correlation']:.2f}"] if "real" in row else ["", ""]),
        ]
        for one in found
        for row in one["anchors"]
    ]


def _bound_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [one["store"], row["bound"], f"{row['silent']:.0%}", f"{row['over_shift']:.2f}"]
        for one in found
        for row in one["bounds"]
    ]


def _sentences(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{one['store']} ({one['items']} complete test items): imputation is certain to help {one['certified']:.0%} of the items if its error "
        f"is known; that error is small enough for the corrected corollary in {one['small enough']:.0%}, "
        f"for the printed one in {one['small enough as printed']:.0%}."
        for one in found
    ]


def _estimate(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Both tables and a sentence per run."""
    lines: list[str] = []
    for headings, rows in ((_ANCHOR_HEADINGS, _anchor_rows(found)), (_BOUND_HEADINGS, _bound_rows(found))):
        lines += ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
        lines += [*("| " + " | ".join(row) + " |" for row in rows), ""]
    return "\n".join([*lines, *(f"* {sentence}" for sentence in _sentences(found))])


def show(found: Sequence[dict[str, Any]]) -> None:
    for headings, rows in ((_ANCHOR_HEADINGS, _anchor_rows(found)), (_BOUND_HEADINGS, _bound_rows(found))):
        table = Table()
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place < 2 else "right")
        for row in rows:
            table.add_row(*row)
        console.out.print(table)
    for sentence in _sentences(found):
        console.out.print(sentence)


if __name__ == "__main__":
    _script.run(main)
