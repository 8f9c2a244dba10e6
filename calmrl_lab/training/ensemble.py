"""A run made of several: members trained one after the other, their scores added with weights that validation chooses."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.data.training_data import open_data
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import CUSTOM, label, resolve
from calmrl_lab.model.encode import encode
from calmrl_lab.model.joined import JoinedHeads
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.similarity import choose_weights
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.devices import resolve as resolve_device
from calmrl_lab.runtime.distributed import processes
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.requirements import check_settings

# What members have in common: together they must not see more than one run may (the seed decides what a scenario hides).
SHARED = (
    "members", "store", "mix", "modalities", "scenario", "scenarios", "warm_up", "warm_up_scenario", "seed", "split_seed",
)  # fmt: skip


def member_configs(config: TrainConfig) -> list[TrainConfig]:
    """The settings of every member: those of the run, or of the method that it names, with the member's own over them. A member is scored by cosine
    unless it says overlap itself.

    Raises CalmrlError for settings that make no sense, members of members, and members that see other data than the run.
    """
    if len(config.members) < 2 or config.gate:
        raise CalmrlError(
            "an ensemble has at least two members, and no gate",
            hint="--set members=[{objective: none, init: ppca}, {objective: clip}]",
        )
    run = config.model_dump(mode="json", exclude={"members", "changed"})
    shared = {**run, "score": "cosine"}
    found = []
    for number, changes in enumerate(config.members):
        where = f"member {number + 1}"
        for key in SHARED:
            if key in changes:
                raise CalmrlError(
                    f"{where}: '{key}' is that of the whole run and cannot differ", hint=f"so are {', '.join(SHARED)}"
                )
        if "method" in changes:
            found.append(resolve({**{key: run[key] for key in (*SHARED, "device") if key in run}, **changes}, where))
        else:
            found.append(build(TrainConfig, {**shared, "method": CUSTOM, **changes}, where))
        check_settings(found[-1])
    overlaps = [number for number, member in enumerate(found, 1) if member.score != "cosine"]
    if (
        config.score == "overlap"
        or len(overlaps) != (config.score == "both")
        or any(found[n - 1].score == "both" for n in overlaps)
    ):
        raise CalmrlError(
            f"an ensemble with score '{config.score}' adds cosines{' to the overlap of one member' if config.score == 'both' else ''}; scored "
            f"otherwise are {', '.join(f'member {n}' for n in overlaps) or 'no members'}",
            hint="--set score=both with one member {objective: none, init: ppca, score: overlap}, or cosines throughout",
        )
    return found


def train_members(config: TrainConfig, path: Path, resume: bool = False, overwrite: bool = False) -> Run:
    """Train the members of `config` under `path`/members and join them (`choose_weights`); with `resume`, finished members are taken as they are."""
    from calmrl_lab.training.train import opened_for_training, train

    if processes() > 1:
        raise CalmrlError("an ensemble is trained by one process", hint="train its members one by one under torchrun")
    started = time.monotonic()
    members = member_configs(config)
    with opened_for_training(config, path, resume, overwrite) as run:
        trained = []
        for number, member in enumerate(members):
            place = path / run.MEMBERS / str(number)
            trained.append(_finished(place, member) or train(member, place))
        _join(config, run, trained, started)
    return Run(path)


def _join(config: TrainConfig, run: Run, trained: Sequence[Run], started: float) -> None:
    """Choose the weights of the members on validation, and write what makes the ensemble a run."""
    maps = next((part.load_latent() for part in trained if part.config.score == "overlap"), None)
    loaded = [part.load_heads() for part in trained if part.config.score == "cosine"]
    heads = [part for part in loaded if isinstance(part, Heads)]
    data = open_data(config, str(resolve_device(config.device)))
    weights, score = choose_weights([encode(part, data.validation) for part in heads], data.validation, maps)
    run.write_bytes(run.METRICS, json.dumps({"epoch": 0, "phase": "join", "step": 0, **score}).encode() + b"\n")
    run.save_heads(JoinedHeads(heads, weights) if len(heads) > 1 else heads[0])
    if maps is not None:
        run.save_latent(maps)
    mask = data.train.mask
    summary = {
        "name": run.name, "method": label(config), "objective": "+".join(part.config.objective for part in trained), "imputer": "none",
        "scenario": config.scenario, "seed": config.seed,
        "store": {"path": str(config.store), "dataset": data.store.dataset, "digest": data.store.digest},
        "modalities": list(data.train.modalities), "dim": sum(part.dim for part in heads), "weights": weights,
        "cosine_weight": None if maps is None else sum(weights),
        "epochs": 0, "best_epoch": 0, **score, "silent_terms": [], "imputer_noise_scale": 1.0, "gate": None, "start": None, "processes": 1,
        "seconds": round(time.monotonic() - started, 2),
        "counts": {
            "train_items": len(data.train), "complete": int(mask.all(dim=1).sum()), "skipped_batches": 0,
            "observed": {m: int(mask[:, j].sum()) for j, m in enumerate(data.train.modalities)}, "validation_items": len(data.validation),
        },
    }  # fmt: skip
    run.append(run.LOG, f"joined {len(trained)} members with weights {weights}")
    run.finish(summary)


def _finished(path: Path, config: TrainConfig) -> Run | None:
    try:
        run = Run.open(path)
        return (
            run if run.summary["store"]["digest"] == FeatureStore.open(config.store).digest and run.config == config else None
        )
    except CalmrlError:
        return None
