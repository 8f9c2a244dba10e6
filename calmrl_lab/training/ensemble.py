"""Ensembles: members trained one after the other, their scores added with weights chosen on validation."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.data.training_data import open_data
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import CUSTOM, label, resolve
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.feature_map import SideBySide
from calmrl_lab.model.joined import JoinedHeads
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.selection import choose_weights
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Sum
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.devices import resolve as resolve_device
from calmrl_lab.runtime.distributed import processes
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.requirements import check_settings
from calmrl_lab.training.watch import Watch

# What members have in common: together they must not see more than one run may (the seed decides what a scenario hides).
SHARED = (
    "members", "store", "mix", "modalities", "scenario", "scenarios", "warm_up", "warm_up_scenario", "seed", "split_seed",
)  # fmt: skip


def member_configs(config: TrainConfig) -> list[TrainConfig]:
    """The settings of every member: those of the run, or of the method that it names, with the member's own over them. A member compares by cosine
    unless it says otherwise itself.

    Raises CalmrlError for settings that make no sense, members of members, and members that see other data than the run.
    """
    if len(config.members) < 2 or config.risk_control:
        raise CalmrlError(
            "an ensemble has at least two members, and no gate",
            hint="--set members=[{objective: none, init: ppca}, {objective: clip}]",
        )
    run = config.model_dump(mode="json", exclude={"members", "changed"})
    shared = {**run, "similarity": "cosine"}
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
    others = [number for number, member in enumerate(found, 1) if member.similarity != "cosine"]
    if (
        config.similarity == "likelihood-ratio"
        or len(others) != (config.similarity == "sum")
        or any(found[n - 1].similarity == "sum" for n in others)
    ):
        beside = " to the likelihood ratio of one member" if config.similarity == "sum" else ""
        raise CalmrlError(
            f"an ensemble with similarity '{config.similarity}' adds cosines{beside}; compared otherwise are "
            f"{', '.join(f'member {n}' for n in others) or 'no members'}",
            hint="--set similarity=sum with one member {objective: none, init: ppca, similarity: likelihood-ratio}, or cosines throughout",
        )
    return found


def train_members(
    config: TrainConfig, path: Path, resume: bool = False, overwrite: bool = False, watch: Watch | None = None
) -> Run:
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
            trained.append(_finished(place, member) or train(member, place, watch=watch))
        _join(config, run, trained, started)
    return Run(path)


def _join(config: TrainConfig, run: Run, trained: Sequence[Run], started: float) -> None:
    """Choose the weights of the members on validation, and write what makes the ensemble a run."""
    data = open_data(config, str(resolve_device(config.device)))
    model, weights, score = join([part.model() for part in trained], data.validation.on("cpu"))
    run.write_bytes(run.METRICS, json.dumps({"epoch": 0, "phase": "join", "step": 0, **score}).encode() + b"\n")
    model.save(run)
    mask = data.train.mask
    summary = {
        "name": run.name, "method": label(config), "objective": "+".join(part.config.objective for part in trained), "imputer": "none",
        "scenario": config.scenario, "seed": config.seed,
        "store": {"path": str(config.store), "dataset": data.store.dataset, "digest": data.store.digest},
        "modalities": list(data.train.modalities), "dim": model.projection.dim, "weights": weights,
        "cosine_weight": sum(weights) if isinstance(model.similarity, Sum) else None,
        "epochs": 0, "best_epoch": 0, **score, "silent_terms": [], "imputer_noise_scale": 1.0, "gate": None, "start": None, "processes": 1,
        "seconds": round(time.monotonic() - started, 2),
        "counts": {
            "train_items": len(data.train), "complete": int(mask.all(dim=1).sum()), "skipped_batches": 0,
            "observed": {m: int(mask[:, j].sum()) for j, m in enumerate(data.train.modalities)}, "validation_items": len(data.validation),
        },
    }  # fmt: skip
    run.append(run.LOG, f"joined {len(trained)} members with weights {weights}")
    run.finish(summary)


def join(members: Sequence[AlignmentModel], validation: FeatureTable) -> tuple[AlignmentModel, list[float], dict[str, float]]:
    """Members as one model, the weights of their cosines, and its validation score (`choose_weights`).

    The embeddings of members that compare by cosine stand side by side; beside the likelihood ratio of a member, if one compares by that, their
    cosine is a part of a sum. `validation` are the items that choose the weights, on the CPU.
    """
    ratio = next((model for model in members if model.similarity.name == LikelihoodRatio.name), None)
    cosines = [model for model in members if model.similarity.name == Cosine.name]
    compared = [(model, model.represent(validation)) for model in (*([ratio] if ratio else []), *cosines)]
    found, score = choose_weights([(model.similarity, items.items.unbind(dim=1)) for model, items in compared], validation)
    weights = list(found[1:] if ratio else found)
    joined = cosines[0] if len(cosines) == 1 else _side_by_side(cosines, weights)
    if ratio is not None:
        joined = replace(joined, similarity=Sum(((ratio.similarity, 1.0), (joined.similarity, sum(weights)))), alternatives=())
    return replace(joined, imputer=None, objective=None), weights, score


def _side_by_side(models: Sequence[AlignmentModel], weights: Sequence[float]) -> AlignmentModel:
    heads = JoinedHeads([model.projection for model in models if isinstance(model.projection, Heads)], weights)
    maps = tuple(SideBySide(parts) for parts in zip(*(model.feature_maps for model in models), strict=True))
    return AlignmentModel(models[0].dims, maps, heads, Cosine(heads.dim))


def _finished(path: Path, config: TrainConfig) -> Run | None:
    try:
        run = Run.open(path)
        return (
            run if run.summary["store"]["digest"] == FeatureStore.open(config.store).digest and run.config == config else None
        )
    except CalmrlError:
        return None
