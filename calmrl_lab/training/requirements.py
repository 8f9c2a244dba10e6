"""What the settings of a run require of each other, checked in one place before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.model.closed_form import StartOptions
from calmrl_lab.model.item_ranking import ItemRanking
from calmrl_lab.model.stacked.fit import FROM_FEATURES
from calmrl_lab.objectives import objectives
from calmrl_lab.registry import known

# The heads stay where they start: what they do untrained.
NO_OBJECTIVE = "none"
# Values of `select_by` that are no scorer: what the method is judged by, and the similarity of pairs.
AUTO, SIMILARITY = "auto", "similarity"


def check_settings(config: TrainConfig) -> None:
    """Refuse settings of one run that cannot work together, whatever the data. Raises CalmrlError with one sentence and what to do instead."""
    _check_start(config)
    _check_imputer(config)
    _check_data(config)
    if config.objective != NO_OBJECTIVE and config.exclude_same_group and not _says(config, "takes_groups"):
        raise CalmrlError(
            f"objective '{config.objective}' takes no groups, which exclude_same_group would have it spare",
            hint="leave exclude_same_group out, or build it on calmrl_lab.objectives.Objective",
        )


def uses_imputed(config: TrainConfig) -> bool:
    """Whether anything that an imputer fills reaches the loss."""
    return config.objective != NO_OBJECTIVE and (config.impute_as_observed or _says(config, "uses_imputed"))


def make_objective(config: TrainConfig, modalities: Sequence[str], dim: int) -> torch.nn.Module:
    """The objective of a run over embeddings of `modalities` of dimension `dim`, on the CPU. Raises CalmrlError for options and modalities that it does not take."""
    if config.objective == NO_OBJECTIVE:
        return torch.nn.Identity()
    objective: torch.nn.Module = objectives.create(config.objective, tuple(modalities), dim, **config.objective_options)
    return objective


def selected_by(config: TrainConfig) -> str:
    """What validation ranks by: a similarity of pairs, or a scorer of whole items.

    A stacked similarity has weights that are fitted once training is over, and the parts of it that training does not change are the same in every
    epoch: its epochs are chosen by the cosine of the heads, which is the part that changes.
    """
    if config.select_by not in (AUTO, SIMILARITY):
        return config.select_by
    own = None if config.objective == NO_OBJECTIVE else getattr(objectives.get(config.objective), "scorer", None)
    if config.select_by == AUTO and config.similarity == "cosine" and own is not None:
        return str(own)
    return config.similarity if config.similarity in ("sum", "likelihood-ratio") else "cosine"


def item_ranking(config: TrainConfig, modalities: Sequence[str], objective: torch.nn.Module) -> ItemRanking | None:
    """How validation ranks whole items, if it does. Raises CalmrlError for a scorer that it cannot rank by."""
    name = selected_by(config)
    if name in ("cosine", "sum", "likelihood-ratio"):
        if name != "cosine" and name != config.similarity:
            raise CalmrlError(
                f"select_by '{name}' ranks by a similarity that the run does not have: its similarity is '{config.similarity}'",
                hint="use select_by=similarity, or cosine",
            )
        return None
    return ItemRanking.of(name, modalities, objective)


def refuse_unfilled(config: TrainConfig) -> None:
    """CalmrlError if the objective trains on imputed embeddings and the imputer makes none; for training data with gaps."""
    if uses_imputed(config) and not imputers.get(config.impute).fills:
        raise CalmrlError(
            f"objective '{config.objective}' needs the gaps filled, and imputer '{config.impute}' fills none",
            hint="use --impute ppca (or mean, random), or --method pmrl",
        )


def refuse_unaligned(config: TrainConfig, masks: Sequence[Bool[Tensor, "n k"]], modalities: Sequence[str]) -> None:
    """CalmrlError if no item of training, by its `masks` of every table, shows two modalities. Heads that start fixed and are not trained look at none."""
    fixed = config.objective == NO_OBJECTIVE and config.init != "ppca" and config.similarity == "cosine"
    if fixed or any(bool((mask.sum(dim=1) > 1).any()) for mask in masks):
        return
    under = "" if config.scenario == "full" else f" under scenario '{config.scenario}'"
    raise CalmrlError(
        f"no training item of store '{config.store}' shows two of the modalities {', '.join(modalities)}{under}, so there is nothing to align them by",
        hint="use a scenario that leaves two modalities of an item, or add a --warm-up store of complete items",
    )


def _check_start(config: TrainConfig) -> None:
    """Start of the heads, what they see, and how pairs are compared."""
    build(StartOptions, config.init_options, "init_options")
    if config.init == "ppca" and config.head != "linear":
        raise CalmrlError(
            f"heads that start from PPCA in closed form are linear, so head '{config.head}' cannot start there",
            hint=f"--method clip-kernel --head {config.head} trains such heads from a random start over kernel features",
        )
    if config.init == "stored" and config.head != "linear":
        raise CalmrlError(
            f"stored projection heads are linear, so head '{config.head}' cannot start there", hint="use --init random with it"
        )
    if config.init == "ppca" and config.features != type(config).model_fields["features"].default:
        raise CalmrlError(
            f"features '{config.features}' is what heads that start at random see, and init is 'ppca'",
            hint="leave features out, or use --set init_options.kernel=rbf, or --init random",
        )
    if (
        config.similarity == "likelihood-ratio"
        and (config.init != "ppca" or config.objective != NO_OBJECTIVE)
        and not config.members
    ):
        raise CalmrlError(
            "similarity 'likelihood-ratio' compares by the PPCA that heads start from, which no training changes",
            hint="use --method likelihood-ratio, or --similarity sum, or --similarity cosine",
        )
    if config.similarity in FROM_FEATURES and config.objective != NO_OBJECTIVE:
        raise CalmrlError(
            f"similarity '{config.similarity}' compares features, which no training changes",
            hint="use --method cca or --method shared-space, or --similarity stacked, which adds trained heads",
        )
    if config.init == "identity" and config.head != "linear":
        raise CalmrlError(
            f"heads that start as the identity are linear, so head '{config.head}' cannot start there",
            hint="use --init random with it",
        )
    if config.init == "identity" and config.features == "kernel":
        raise CalmrlError(
            "heads that start as the identity leave features as they are, which kernel features are not",
            hint="use --init random",
        )
    if config.similarity == "sum" and config.init != "ppca" and not config.members:
        raise CalmrlError(
            f"similarity 'sum' adds the cosine of heads to the likelihood ratio under the PPCA that they start from, and init is '{config.init}'",
            hint="use --init ppca or --similarity cosine with it, or another --method",
        )


def _check_imputer(config: TrainConfig) -> None:
    imputer = imputers.create(config.impute, **config.impute_options)
    if imputer.fills and not uses_imputed(config):
        raise CalmrlError(
            f"imputer '{config.impute}' would never be used: objective '{config.objective}' does not train on imputed embeddings",
            hint="use --method calmrl, or --set impute_as_observed=true, or leave --impute out",
        )
    if config.risk_control and not imputer.fills:
        raise CalmrlError(
            f"there is no calibration whose risk could be controlled: imputer '{config.impute}' fills no gaps",
            hint="use --method calmrl with --risk-control",
        )
    if config.impute_as_observed and not imputer.fills:
        raise CalmrlError(
            f"impute_as_observed shows imputed embeddings to the objective, and imputer '{config.impute}' fills no gaps",
            hint="name an imputer with --impute",
        )
    if config.warm_up is None and config.imputer_data == "warm-up":
        raise CalmrlError("imputer_data is 'warm-up', and there is no warm-up store", hint="name one with --warm-up")


def _check_data(config: TrainConfig) -> None:
    for store in config.scenarios:
        known(store, list(config.mix), "scenarios: the mix has no store")


def _says(config: TrainConfig, attribute: str) -> bool:
    """An attribute of `Objective`; False for objectives of other packages that are not built on it."""
    return bool(getattr(objectives.get(config.objective), attribute, False))
