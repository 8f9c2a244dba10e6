"""Run directories as training and evaluation leave them, with invented numbers that have the structure of real ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from calmrl_lab.methods.resolve import resolve
from calmrl_lab.runs.artifact_folder import digest
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run
from calmrl_lab.runs.run_folder import FORMAT

MODALITIES = ("vision", "audio", "caption", "subtitle")
PATTERNS = ("vision+audio", "vision+caption", "audio+caption", "audio+subtitle")
DIGEST = "5f1d0c"


@dataclass
class Recipe:
    """A method of an invented experiment; `skill` is the share of queries it finds at once."""

    name: str
    label: str
    role: str
    objective: str
    impute: str
    skill: float
    scenario: str = "pairs:0.25"
    error: dict[str, float] = field(default_factory=dict)
    gain: float = 0.12
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method file with this objective and nothing else."""
        return "closed-form" if self.objective == "none" else self.objective


RECIPES = (
    Recipe("oracle", "PMRL, nothing hidden (oracle)", "oracle", "pmrl", "none", 0.30, "full"),
    Recipe("pmrl-complete", "PMRL, complete items only", "baseline", "pmrl", "none", 0.08, "pairs:0.25+complete-only"),
    Recipe("pmrl", "PMRL, observed only", "baseline", "pmrl", "none", 0.14),
    Recipe(
        "calmrl-ppca", "CalMRL, PPCA", "calibrated", "calmrl", "ppca", 0.20, error={"ppca": 0.55, "mean": 0.8, "random": 1.6}
    ),
    Recipe("calmrl-mean", "CalMRL, mean", "control", "calmrl", "mean", 0.13, error={"mean": 0.8, "random": 1.6}),
    Recipe("calmrl-random", "CalMRL, random row", "control", "calmrl", "random", 0.09, error={"random": 1.6, "mean": 0.8}),
    Recipe("clip", "CLIP, observed pairs", "baseline", "clip", "none", 0.22),
)


def with_skills(**skills: float) -> tuple[Recipe, ...]:
    """The usual methods with some skills changed (`-` in a name is written `_`)."""
    changed = {name.replace("_", "-"): skill for name, skill in skills.items()}
    return tuple(Recipe(**{**recipe.__dict__, "skill": changed.get(recipe.name, recipe.skill)}) for recipe in RECIPES)


def write_experiment(
    folder: Path,
    recipes: Sequence[Recipe] = RECIPES,
    seeds: Sequence[int] = (0, 1, 2),
    items: int = 120,
    modalities: Sequence[str] = MODALITIES,
    record: bool = True,
    failed: Sequence[dict[str, Any]] = (),
    extras: bool = False,
) -> Path:
    """An experiment folder with a finished run of every recipe and seed; `extras` adds classification and missing-modality curves."""
    for recipe in recipes:
        for seed in seeds:
            run = write_run(folder / f"{recipe.name}-s{seed}", recipe, seed, items, modalities)
            if extras:
                Run(run).write_frame("classification.parquet", classification(recipe, seed, items))
            if extras and recipe.name in {"pmrl", "calmrl-ppca", "clip"}:
                Run(run).write_frame("curves.parquet", curves(recipe, seed, items, modalities))
    if record:
        ExperimentFolder(folder).write(_record(recipes, seeds, items, modalities, failed))
    return folder


def write_run(folder: Path, recipe: Recipe, seed: int, items: int = 120, modalities: Sequence[str] = MODALITIES) -> Path:
    """One finished, evaluated run."""
    folder.mkdir(parents=True)
    asked = {
        "store": "stores/invented.zarr", "method": recipe.method, "modalities": list(modalities), "impute": recipe.impute,
        "scenario": recipe.scenario, "seed": seed, "dim": 64, **recipe.more,
    }  # fmt: skip
    config = {"format": FORMAT, **resolve(asked, "synthetic runs").model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    environment = {
        "calmrl_lab": "0.1.0", "python": "3.11.9", "platform": "Linux x86_64", "packages": {"torch": "2.13.0"},
        Run.CONFIG: digest((folder / Run.CONFIG).read_bytes()),
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    lines = [{"epoch": e, "phase": "train", "validation_mrr": recipe.skill * (1 - 0.7**e) + 0.02} for e in range(8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    generator = np.random.default_rng([seed, sum(recipe.name.encode())])
    run = Run(folder)
    summary = {
        "name": folder.name, "method": recipe.label, "objective": recipe.objective, "imputer": recipe.impute,
        "scenario": recipe.scenario, "seed": seed, "modalities": list(modalities), "epochs": 40, "best_epoch": 31,
        "store": {"path": "stores/invented.zarr", "dataset": "invented", "digest": DIGEST}, "validation_mrr": recipe.skill + 0.02,
        "seconds": 4.2, "counts": {"train_items": 600, "complete": 150, "observed": dict.fromkeys(modalities, 375)},
    }  # fmt: skip
    run.finish(summary)
    run.write_frame("scores.parquet", scores(recipe, seed, items, modalities))
    if recipe.error:
        run.write_frame("imputation.parquet", imputation(recipe, generator, items, modalities))
        run.write_frame("anchors.parquet", anchors(recipe, generator, items))
    return folder


def scores(recipe: Recipe, seed: int, items: int, modalities: Sequence[str]) -> pd.DataFrame:
    """Ranks: items differ in difficulty, and the same items are difficult for every method, as on real data."""
    difficulty = np.random.default_rng(7).uniform(0.2, 1.8, size=items)
    frames = []
    for index, (query, gallery) in enumerate(itertools.permutations(modalities, 2)):
        luck = np.random.default_rng([index, seed, 11]).uniform(size=items)
        chance = np.clip(recipe.skill * difficulty * (0.6 + 0.07 * index), 0, 1)
        depth = np.random.default_rng([index, seed, 13]).geometric(0.02 + recipe.skill / 3, size=items)
        greater = np.where(luck < chance, 0, np.minimum(depth, items - 1))
        frames.append(
            pd.DataFrame(
                {
                    "query": query, "gallery": gallery, "scorer": "cosine", "gallery_scenario": "full",
                    "item": [f"item-{i:03d}" for i in range(items)], "group": [f"group-{i // 2:03d}" for i in range(items)],
                    "pattern": "+".join(modalities), "greater": greater, "equal": (luck > 0.97).astype(int),
                    "best_positives": 1, "candidates": items, "positives": 1,
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def imputation(recipe: Recipe, generator: np.random.Generator, items: int, modalities: Sequence[str]) -> pd.DataFrame:
    frames = []
    for imputer, error in recipe.error.items():
        patterns = [pattern for pattern in PATTERNS if set(pattern.split("+")) <= set(modalities)]
        for split, pattern in [("train", patterns[0]), *(("test", pattern) for pattern in patterns)]:
            for modality in modalities:
                if modality in pattern.split("+"):
                    continue
                frames.append(
                    pd.DataFrame(
                        {
                            "imputer": imputer, "pattern": pattern, "split": split,
                            "item": [f"item-{i:03d}" for i in range(items)], "group": [f"group-{i // 2:03d}" for i in range(items)],
                            "modality": modality, "squared_error": error * generator.uniform(0.5, 1.5, size=items),
                            "predicted_error": error * 0.8 if imputer == "ppca" else np.nan,
                        }
                    )
                )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def classification(recipe: Recipe, seed: int, items: int) -> pd.DataFrame:
    """Four classes of unequal size; the joint embedding is classified a second time with gaps filled."""
    generator = np.random.default_rng([seed, sum(recipe.name.encode()), 5])
    label = np.array(["animals", "flags", "food", "travel"])[np.minimum(np.arange(items) % 7, 3)]
    frames = []
    for kind, gain in (("zero-shot", 0.0), ("knn", 0.1), ("linear", 0.2)):
        for modality, calibrated in (("vision", False), ("joint", False), ("joint", True)):
            correct = generator.uniform(size=items) < recipe.skill + 0.3 + gain + 0.05 * calibrated
            frames.append(
                pd.DataFrame(
                    {
                        "kind": kind, "modality": modality, "calibrated": calibrated, "label": label,
                        "item": [f"item-{i:03d}" for i in range(items)], "group": [f"group-{i // 2:03d}" for i in range(items)],
                        "pattern": "all", "predicted": np.where(correct, label, "animals"), "correct": correct,
                        "correct_at_5": np.nan, "known": True,
                    }
                )
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def curves(recipe: Recipe, seed: int, items: int, modalities: Sequence[str]) -> pd.DataFrame:
    """Recall falls with the share that is hidden, more slowly with gaps filled; joining modalities gains a little."""
    frames = []
    scenarios = {"full": 0.0, "random:0.25": 0.25, "random:0.5": 0.5, "random:0.9": 0.9, f"drop:{modalities[0]}": 0.4}
    for (scenario, rate), query, calibrated, side in itertools.product(
        scenarios.items(), modalities[1:3], (False, True), ("gallery", "query")
    ):
        others = [name for name in modalities if name != query]
        for scorer, gain in (("centroid", 0.05), *((f"cosine:{name}", 0.01 * i) for i, name in enumerate(others))):
            luck = np.random.default_rng([seed, sum(scenario.encode()), sum(query.encode()), 17]).uniform(size=items)
            share = (recipe.skill + gain) * (1 - rate * (0.5 if calibrated else 0.9))
            frames.append(
                pd.DataFrame(
                    {
                        "query": query if side == "gallery" else "+".join(others), "side": side, "scorer": scorer,
                        "gallery": "+".join(others) if side == "gallery" else query, "calibrated": calibrated,
                        "gallery_scenario": scenario, "item": [f"item-{i:03d}" for i in range(items)],
                        "group": [f"group-{i // 2:03d}" for i in range(items)], "pattern": "+".join(others),
                        "greater": np.where(luck < share, 0, 7), "equal": 0, "best_positives": 1, "candidates": items, "positives": 1,
                        "unserved": 0,
                    }
                )
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def anchors(recipe: Recipe, generator: np.random.Generator, items: int) -> pd.DataFrame:
    frames = []
    for index, pattern in enumerate(PATTERNS):
        observed = generator.uniform(0.2, 0.8, size=items) + 0.03 * index
        calibrated = np.abs(observed - recipe.gain + generator.normal(0, 0.08, size=items))
        frames.append(
            pd.DataFrame(
                {
                    "imputer": recipe.impute, "pattern": pattern, "split": "test",
                    "item": [f"item-{i:03d}" for i in range(items)], "group": [f"group-{i // 2:03d}" for i in range(items)],
                    "shift_observed": observed, "shift_calibrated": calibrated, "lower": observed * 0.8,
                    "upper": np.minimum(observed * 1.3, np.sqrt(2)), "eigengap": generator.uniform(0.3, 1.5, size=items),
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _record(
    recipes: Sequence[Recipe], seeds: Sequence[int], items: int, modalities: Sequence[str], failed: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "title": "Invented data, a quarter of the items complete",
        "notes": "Learning rates were chosen on validation: the smallest that had converged after 40 epochs.",
        "split": "test",
        "seeds": list(seeds),
        "methods": [
            {
                "name": r.name, "label": r.label, "role": r.role,
                "method": r.method, "settings": {"impute": r.impute, "scenario": r.scenario, **r.more},
                "tuning": [], "runs": [f"{r.name}-s{seed}" for seed in seeds],
            }
            for r in recipes
        ],
        "common": {"modalities": list(modalities), "dim": 64, "scenario": "pairs:0.25"},
        "store": {
            "path": "stores/invented.zarr", "digest": DIGEST, "dataset": "invented", "licence": "CC BY-SA 4.0",
            "attribution": "nobody, <invented> & free", "items": 5 * items, "modalities": list(modalities),
            "splits": {"train": 3 * items, "validation": items, "test": items}, "dims": dict.fromkeys(modalities, 384),
            "missing": {m: {"absent": 30 * i, "failed": i, "not extracted": 0} for i, m in enumerate(modalities)},
            "patterns": {"+".join(modalities): 4 * items, "+".join(modalities[:-1]): items},
            "encoders": {m: f"{m} encoder" for m in modalities},
        },
        "failed": list(failed),
    }  # fmt: skip
