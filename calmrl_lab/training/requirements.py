"""What an objective and an imputer require of a run before it starts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.model.stacked.fit import FROM_FEATURES
from calmrl_lab.objectives import objectives
from calmrl_lab.runtime.distributed import Batch

if TYPE_CHECKING:
    pass


# The heads stay where they start: what they do untrained.
NO_OBJECTIVE = "none"


def make_objective(config: TrainConfig, modalities: Sequence[str], dim: int) -> torch.nn.Module:
    """The objective of a run over embeddings of `modalities` of dimension `dim`, on the CPU. Raises CalmrlError for options, modalities and scores that do not fit together."""
    if config.similarity == "likelihood-ratio" and (config.init != "ppca" or config.objective != NO_OBJECTIVE):
        raise CalmrlError(
            "similarity 'likelihood-ratio' compares by the PPCA that heads start from, which no training changes",
            hint="use --init ppca --objective none with it, --init ppca --similarity sum, or --similarity cosine",
        )
    if config.similarity in FROM_FEATURES and config.objective != NO_OBJECTIVE:
        raise CalmrlError(
            f"similarity '{config.similarity}' compares features, which no training changes",
            hint="use --objective none with it, or --similarity stacked, which adds trained heads",
        )
    if config.similarity == "sum" and config.init != "ppca":
        raise CalmrlError(
            "similarity 'sum' adds the cosine of heads to the likelihood ratio under the PPCA that they start from",
            hint="use --init ppca with it",
        )
    if config.objective == NO_OBJECTIVE:
        return torch.nn.Identity()
    try:
        objective: torch.nn.Module = objectives.get(config.objective)(tuple(modalities), dim, **config.objective_options)
    except TypeError as error:
        raise CalmrlError(f"objective '{config.objective}': {error}", hint="see calmrl-lab list objectives") from None
    if config.exclude_same_group and len(inspect.signature(objective.forward).parameters) < len(Batch._fields):
        raise CalmrlError(
            f"objective '{config.objective}' takes no groups, which exclude_same_group would have it spare",
            hint="leave exclude_same_group out, or give its forward a fourth argument `groups`",
        )
    return objective


def refuse_unfilled(config: TrainConfig) -> None:
    """CalmrlError if the objective trains on imputed embeddings and the imputer makes none."""
    if config.objective == "calmrl" and not imputers.get(config.impute).fills:
        raise CalmrlError(
            f"objective 'calmrl' needs the gaps filled, and imputer '{config.impute}' fills none",
            hint="use --impute ppca (or mean, random), or --objective pmrl",
        )
