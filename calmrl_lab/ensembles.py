"""A run made of several: members trained one after the other, their embeddings joined with weights that validation chooses."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.devices import resolve
from calmrl_lab.distributed import processes
from calmrl_lab.errors import CalmrlError
from calmrl_lab.feeding import open_data
from calmrl_lab.filling import encode
from calmrl_lab.heads import Heads
from calmrl_lab.joined_heads import JoinedHeads
from calmrl_lab.runs import Run
from calmrl_lab.validation import validation_score

if TYPE_CHECKING:
    from calmrl_lab.batches import FeatureTable

# What members have in common: together they must not see more than one run may (the seed decides what a scenario hides).
SHARED = (
    "members", "store", "mix", "modalities", "scenario", "scenarios", "warm_up", "warm_up_scenario", "seed", "split_seed", "score",
)  # fmt: skip
# Weights of a member beside the first one's 1 that validation chooses among.
TRIED = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def member_configs(config: TrainConfig) -> list[TrainConfig]:
    """The settings of every member: those of the run with the member's own laid over them.

    Raises CalmrlError for settings that make no sense, members of members, and members that see other data than the run.
    """
    shared = config.model_dump(mode="json", exclude={"members"})
    found = []
    for number, changes in enumerate(config.members):
        where = f"member {number + 1}"
        for key in SHARED:
            if key in changes:
                raise CalmrlError(
                    f"{where}: '{key}' is that of the whole run and cannot differ", hint=f"so are {', '.join(SHARED)}"
                )
        found.append(build(TrainConfig, {**shared, **changes}, where))
    return found


def train_members(config: TrainConfig, path: Path) -> Run:
    """Train the members of `config` under `path`/members and join their heads; finished members are taken as they are.

    The weight of each member beside the first is the one with the best mean reciprocal rank on validation items, one member after the other.
    """
    from calmrl_lab.training import train

    if len(config.members) < 2 or processes() > 1 or config.score != "cosine" or config.gate:
        raise CalmrlError(
            "an ensemble has at least two members, is trained by one process, without a gate, and compares by cosines",
            hint="--set members=[{objective: none, init: ppca}, {objective: clip}]",
        )
    started = time.monotonic()
    members = member_configs(config)
    run = Run.create(path, config)
    parts = []
    for number, member in enumerate(members):
        place = path / "members" / str(number)
        parts.append((_finished(place, member) or train(member, place)).load_heads())
    heads = [part for part in parts if isinstance(part, Heads)]
    data = open_data(config, str(resolve(config.device)))
    weights, score = choose_weights([encode(part, data.validation) for part in heads], data.validation)
    run.append("metrics.jsonl", json.dumps({"epoch": 0, "phase": "join", "step": 0, **score}))
    run.save_heads(JoinedHeads(heads, weights))
    mask = data.train.mask
    summary = {
        "name": run.name, "method": "ensemble", "objective": "+".join(member.objective for member in members), "imputer": "none",
        "scenario": config.scenario, "seed": config.seed,
        "store": {"path": str(config.store), "dataset": data.store.dataset, "digest": data.store.digest},
        "modalities": list(data.train.modalities), "dim": sum(part.dim for part in heads), "weights": weights,
        "epochs": 0, "best_epoch": 0, **score, "silent_terms": [], "imputer_noise_scale": 1.0, "gate": None, "start": None, "processes": 1,
        "seconds": round(time.monotonic() - started, 2),
        "counts": {
            "train_items": len(data.train), "complete": int(mask.all(dim=1).sum()), "skipped_batches": 0,
            "observed": {m: int(mask[:, j].sum()) for j, m in enumerate(data.train.modalities)}, "validation_items": len(data.validation),
        },
    }  # fmt: skip
    run.write_json("summary.json", summary)
    run.append("log.txt", f"joined {len(heads)} members with weights {weights}")
    return run


def choose_weights(embeddings: Sequence[list[Tensor]], validation: FeatureTable) -> tuple[list[float], dict[str, float]]:
    """Weights of the members whose embeddings of the validation items are given (the first has 1), and the score they reach."""
    weights = [1.0]
    joined = [part.double() for part in embeddings[0]]
    score = validation_score(joined, validation)
    for member in embeddings[1:]:
        # A weighted sum of cosines ranks as its square roots do side by side; no need for unit norm.
        tried = {w: [torch.cat([a, w**0.5 * b.double()], dim=1) for a, b in zip(joined, member, strict=True)] for w in TRIED}
        scores = {w: validation_score(both, validation) for w, both in tried.items()}
        best = max(TRIED, key=lambda w: scores[w]["validation_mrr"])
        weights.append(best)
        joined, score = tried[best], scores[best]
    return weights, score


def _finished(path: Path, config: TrainConfig) -> Run | None:
    try:
        run = Run.open(path)
        return run if run.finished() and run.config == config else None
    except CalmrlError:
        return None
