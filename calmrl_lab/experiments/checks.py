"""Checks of an experiment before anything runs: objectives, imputers, scenarios, directions and labels have to fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.missingness import apply_scenario
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.ensemble import member_configs
from calmrl_lab.training.requirements import check_settings, item_ranking, make_objective, refuse_unfilled

if TYPE_CHECKING:
    from calmrl_lab.experiments.spec import Experiment


def refuse_impossible(config: TrainConfig, where: str) -> None:
    """CalmrlError that begins with `where` if a run would stop before its first step. Without its store only what the configuration says of
    itself is checked.
    """
    try:
        if config.members:
            for number, member in enumerate(member_configs(config), 1):
                refuse_impossible(member, f"member {number}")
            return
        check_settings(config)
        modalities = config.modalities or _modalities([config.store, *config.mix])
        if not modalities:
            return
        item_ranking(config, modalities, make_objective(config, modalities, config.dim))
        if config.scenario != "full":
            refuse_unfilled(config)
        nobody = np.zeros((0, len(modalities)), dtype=bool)
        for scenario in (config.scenario, config.warm_up_scenario, *config.scenarios.values()):
            apply_scenario(scenario, [], modalities, nobody, 0)
    except CalmrlError as error:
        raise CalmrlError(f"{where}: {error.message}", hint=error.hint) from None


def refuse_unanswerable(experiment: Experiment, path: Path) -> None:
    """CalmrlError for directions, probes or a split that the store of the experiment does not have; nothing where it does not exist yet."""
    from calmrl_lab.experiments.spec import asked_directions

    directions, scored_on = asked_directions(experiment), experiment.score_on or experiment.store
    if experiment.score_on and experiment.probes and experiment.probes.queries:
        raise CalmrlError(
            f"{path}: probes: curves of missing modalities are of the store that runs are trained on, and score_on is '{experiment.score_on}'",
            hint="queries: []",
        )
    if not Path(scored_on).exists():
        return
    store = FeatureStore.open(scored_on)
    for name in dict.fromkeys(name for direction in directions for name in direction):
        known(name, store.modalities, f"{path}: directions: store '{scored_on}' has no modality")
    if experiment.split not in store.split and not experiment.split_by_seed and "split_seed" not in experiment.common:
        splits = ", ".join(np.unique(store.split))
        raise CalmrlError(f"{path}: store '{scored_on}' has no items in split '{experiment.split}'", hint=f"it has: {splits}")
    label = experiment.probes.label if experiment.probes else None
    if label is not None:
        known(label, list(store.labels), f"{path}: probes: store '{scored_on}' has no label")


def _modalities(stores: list[str]) -> tuple[str, ...]:
    """The modalities of the stores, in the order in which they occur; none if a store does not exist yet."""
    if not all(Path(store).exists() for store in stores):
        return ()
    return tuple(dict.fromkeys(name for store in stores for name in FeatureStore.open(store).modalities))
