"""The numbers that a change of structure must not change: `PYTHONPATH=. python tests/golden/make_golden.py [CASE ...]` writes golden.json anew.

A case is a small run, a fit or a score on tests/data/openmoji-small.zarr; its quantities are a nested dictionary of numbers. Everything is
computed with fixed seeds on one thread. A change that moves a number on purpose writes golden.json anew in a commit that says so.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

# ---- The only place that knows modules, file names and words below the public interface: adapt it when they change. ----
from calmrl_lab import FeatureStore, evaluate, train_heads
from calmrl_lab.config import TrainConfig
from calmrl_lab.evaluation.missing_curves import curve_table, run_curves
from calmrl_lab.imputers import imputers
from calmrl_lab.objectives import objectives
from calmrl_lab.scorers import scorers
from calmrl_lab.training.train import train

# Setting that says how pairs are compared, and its values for posteriors under PPCA and for these plus the cosine.
SIMILARITY, RATIO, SUM = "similarity", "likelihood-ratio", "sum"


def train_recommended(store: Path, run: Path, **settings: Any) -> Any:
    """The run that `train-heads` makes when no method is named."""
    return train_heads(store, run=run, **settings)


def train_method(store: Path, run: Path, objective: str, impute: str, **settings: Any) -> Any:
    """The run with this objective and imputer, all other settings at their defaults."""
    return train(TrainConfig(store=str(store), objective=objective, impute=impute, **settings), run)


def metrics(run: Any) -> list[dict[str, float]]:
    """What was logged of every epoch, the start first."""
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- End of that place. ----

STORE = Path(__file__).parents[1] / "data" / "openmoji-small.zarr"
GOLDEN = Path(__file__).parent / "golden.json"
THREE = ("vision", "audio", "caption")
QUICK = {
    "modalities": THREE,
    "scenario": "pairs:0.25",
    "seed": 0,
    "epochs": 3,
    "dim": 16,
    "batch_size": 64,
    "first_iterations": 10,
    "refresh_iterations": 2,
    "device": "cpu",
}
PPCA_START = {"init": "ppca", "init_options": {"latent_dim": 16}}
# Imputers beside PPCA that CalMRL is trained with.
CALMRL_IMPUTERS = ("mean", "ridge", "knn", "ppca-student")
# Of imputers whose latent vector would be too long for the table that they are fitted on, or that would take seconds.
IMPUTER_OPTIONS: dict[str, dict[str, int]] = {
    **{name: {"latent_dim": 8} for name in ("ppca", "ppca-private", "ppca-student")},
    "ppca-mixture": {"latent_dim": 8, "components": 3, "passes": 3},
    "ppca-gradient": {"latent_dim": 8, "steps": 50},
    **{name: {"hidden": 16, "epochs": 5} for name in ("mvae", "mopoe", "context", "attention")},
}
# Cases that float32 arithmetic enters nowhere: the same on every machine to 1e-9.
FLOAT32_IMPUTERS = ("autoencoder", "mvae", "mopoe", "context", "attention")
FLOAT64 = tuple(f"imputer {name}" for name in imputers if name not in FLOAT32_IMPUTERS)
Quantities = dict[str, Any]


def run_numbers(run: Any) -> Quantities:
    """Validation score and last loss of a run; recalls per direction, imputation errors and anchor shifts of its test items."""
    found = evaluate(run, device="cpu")
    last = metrics(run)[-1]
    numbers: Quantities = {
        "validation_mrr": run.summary["validation_mrr"],
        "best_epoch": run.summary["best_epoch"],
        "directions": {},
    }
    if "loss" in last:
        numbers["last_loss"] = last["loss"]
    for row in found.table().to_dict("records"):
        kept = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank", "mrr", "ndcg", "queries")
        numbers["directions"][f"{row['query']}->{row['gallery']}"] = {name: row[name] for name in kept}
    if found.imputation is not None:
        numbers["imputation_errors"] = {}
        for (imputer, split, modality), part in found.imputation.groupby(["imputer", "split", "modality"]):
            means = {"squared": part["squared_error"].mean(), "predicted": part["predicted_error"].mean()}
            numbers["imputation_errors"][f"{imputer}, {split}, {modality}"] = means
    if found.anchors is not None and len(found.anchors):
        numbers["anchor_shifts"] = {}
        for pattern, part in found.anchors.groupby("pattern"):
            kept = ("shift_observed", "shift_calibrated", "lower", "upper")
            numbers["anchor_shifts"][pattern] = {name: part[name].mean() for name in kept}
    return numbers


def method(folder: Path, objective: str, impute: str = "none", **settings: Any) -> Quantities:
    """The numbers of a run with this objective and imputer."""
    return run_numbers(train_method(STORE, folder / "run", objective, impute, **{**QUICK, **settings}))


def recommended(folder: Path) -> Quantities:
    """The numbers of the run that is trained when no method is named."""
    asked = {"modalities": THREE, "scenario": "pairs:0.25", "seed": 0, "epochs": 3, "batch_size": 64, "device": "cpu"}
    return run_numbers(train_recommended(STORE, folder / "run", **asked))


@cache
def embeddings_with_gaps() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Embeddings [300, 24] float64 of three modalities, with unit norm; which were shown [300, 3]; which items are fitted [300].

    They are fixed random projections of the features about their mean. A third of the entries is hidden, but never a whole item.
    """
    store, generator = FeatureStore.open(STORE), np.random.default_rng(0)
    embeddings = []
    for name in THREE:
        rows = np.asarray(store.features(name), dtype=np.float64)[np.asarray(store.offsets(name))[:-1]]
        rows = (rows - rows.mean(axis=0)) @ generator.standard_normal((rows.shape[1], 24))
        embeddings.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    mask = generator.random((len(store), len(THREE))) > 1 / 3
    mask[~mask.any(axis=1), 0] = True
    return embeddings, mask, np.asarray(store.split) == "train"


def imputer_numbers(name: str, folder: Path) -> Quantities:
    """Mean squared and predicted errors of an imputer that was fitted on the training items, per split and modality."""
    embeddings, mask, train_items = embeddings_with_gaps()
    imputer = imputers.get(name)(**IMPUTER_OPTIONS.get(name, {}))
    imputer.modalities = THREE
    groups = {"groups": np.asarray(FeatureStore.open(STORE).group)[train_items]} if imputer.takes_groups else {}
    hidden = [np.where(mask[:, [j]], values, 0.0) for j, values in enumerate(embeddings)]
    imputer.fit([values[train_items] for values in hidden], mask[train_items], **groups)
    filled = imputer.impute(hidden, mask)
    predicted = np.asarray(imputer.predicted_error(hidden, mask)) if hasattr(imputer, "predicted_error") else None
    numbers: Quantities = {}
    for split, items in (("train", train_items), ("other", ~train_items)):
        for j, modality in enumerate(THREE):
            gaps = items & ~mask[:, j]
            squared = np.square(np.asarray(filled[j])[gaps] - embeddings[j][gaps]).sum(axis=1)
            means = {"squared": squared.mean()} | ({} if predicted is None else {"predicted": predicted[gaps, j].mean()})
            numbers[f"{split}, {modality}"] = means
    return numbers


# The runs whose items are scored, trained once for each temporary folder.
@cache
def scored_run(folder: Path) -> Any:
    """A run with all that scorers other than 'fused' need: a start by PPCA and a fitted PPCA of its embeddings."""
    settings = {**QUICK, **PPCA_START, SIMILARITY: SUM}
    return train_method(STORE, folder / "scored", "calmrl", "ppca", **settings)


@cache
def fusing_run(folder: Path) -> Any:
    """A run with trained fusion heads."""
    return train_method(STORE, folder / "fusing", "vast", "none", **QUICK)


@cache
def comm_run(folder: Path) -> Any:
    """A run whose objective has a score of its own."""
    return train_method(STORE, folder / "comm", "comm", "none", **QUICK)


@cache
def canonical_run(folder: Path) -> Any:
    """A run that compares by canonical variates."""
    return train_method(STORE, folder / "canonical", "none", "none", **QUICK, **{SIMILARITY: "canonical-cosine"})


def scorer_numbers(name: str, folder: Path) -> Quantities:
    """Recalls of captions against items that show drawing and speech, and back, with nothing and with half of it hidden."""
    run = {"fused": fusing_run, "objective": comm_run, "canonical-cosine": canonical_run}.get(name, scored_run)(folder.parent)
    asked = f"{name}:vision" if name == "cosine" else name
    curves = run_curves(run, [asked], ["full", "random:0.5"], ["caption"], device="cpu")
    # Single modalities are scored beside every scorer, and are a case of their own.
    curves = curves[curves["scorer"] == asked]
    numbers: Quantities = {}
    for row in curve_table(curves, np.random.default_rng(0)).to_dict("records"):
        filled = ", gaps filled" if row["calibrated"] else ""
        key = f"{row['scorer']}, {row['query']}->{row['gallery']}, {row['gallery_scenario']}{filled}"
        kept = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "queries", "unserved")
        numbers[key] = {column: row[column] for column in kept}
    return numbers


CASES: dict[str, Callable[[Path], Quantities]] = {
    **{f"objective {name}": partial(method, objective=name) for name in objectives if name != "calmrl"},
    "objective calmrl": partial(method, objective="calmrl", impute="ppca"),
    **{f"calmrl with {name}": partial(method, objective="calmrl", impute=name) for name in CALMRL_IMPUTERS},
    "recommended": recommended,
    "closed form": partial(method, objective="none", **PPCA_START, **{SIMILARITY: RATIO}),
    "heads by PPCA and both scores": partial(method, objective="clip", **PPCA_START, **{SIMILARITY: SUM}),
    "mlp heads": partial(method, objective="clip", head="mlp"),
    "five modalities": partial(method, objective="calmrl", impute="ppca", modalities=None, scenario="full"),
    **{f"imputer {name}": partial(imputer_numbers, name) for name in imputers},
    **{f"scorer {name}": partial(scorer_numbers, name) for name in scorers},
}


def compute(case: str, folder: Path) -> Quantities:
    """The quantities of one case, computed on one thread with files below the existing folder `folder`."""
    place = folder / "".join(c if c.isalnum() else "-" for c in case)
    place.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return CASES[case](place)
    finally:
        torch.set_num_threads(threads)


def rounding() -> list[float]:
    """Losses [20] of a small float32 training without calmrl_lab, which two machines share only if their libraries round alike."""
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images, texts = (torch.randn(64, width, generator=generator) for width in (1280, 384))
        heads = [torch.randn(rows.shape[1], 16, generator=generator).requires_grad_() for rows in (images, texts)]
        optimiser = torch.optim.AdamW(heads, lr=0.01)
        losses = []
        for _ in range(20):
            left, right = (
                torch.nn.functional.normalize(rows @ head, dim=1) for rows, head in zip((images, texts), heads, strict=True)
            )
            spectra = torch.linalg.svdvals(torch.stack([left, right], dim=1))
            loss = torch.nn.functional.cross_entropy(left @ right.T / 0.07, torch.arange(64)) - spectra[:, 0].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    finally:
        torch.set_num_threads(threads)
    return losses


def flat(quantities: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a nested dictionary, with the names that lead to it; null is NaN, which JSON lacks."""
    for name, value in quantities.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name} / ")
        else:
            yield f"{above}{name}", math.nan if value is None else float(value)


def plain(value: Any) -> Any:
    """`value` as JSON holds it: numbers of Python, NaN as null."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (int, np.integer)):
        return int(value)
    return None if math.isnan(value) else float(value)


def main(*names: str) -> None:
    """Write golden.json: all cases, or those named anew beside the others as they are."""
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"] if names else {}
    with tempfile.TemporaryDirectory() as folder:
        cases = {case: kept[case] if names and case not in names else plain(compute(case, Path(folder))) for case in CASES}
    GOLDEN.write_text(json.dumps({"rounding": rounding(), "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases, {sum(1 for _ in flat(cases))} numbers in {GOLDEN}")


if __name__ == "__main__":
    main(*sys.argv[1:])
