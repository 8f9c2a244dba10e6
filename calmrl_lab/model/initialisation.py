"""Where training begins: feature maps and heads before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model.closed_form import PPCAStart, require_two, start_by_ppca
from calmrl_lab.model.encode import encode
from calmrl_lab.model.feature_map import Affine, Chain, FeatureMap, Identity, Scaling, UnitNorm, fit_scaling, identities
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.signs import best_rotations, best_signs, pair_cosines
from calmrl_lab.model.similarity import LikelihoodRatio
from calmrl_lab.runtime import console
from calmrl_lab.runtime.distributed import rank

# A mean of unit-norm embeddings shorter than this is about zero: that of 1,000 random ones has a norm of about 0.03.
_NO_MEAN = 0.1
# Unit-norm features of which their mean is a larger share of the squared norm are nearly one vector.
_ALIKE = 0.95
# How VAST, GRAM and PMRL name the projection of each modality in their checkpoints.
_STORED_HEADS = {"vision": "contra_head_v", "audio": "contra_head_a", "caption": "contra_head_t", "subtitle": "contra_head_s"}


@dataclass(frozen=True)
class Start:
    """A model before its first step: feature maps, heads over what they give, and, of a start by PPCA, a likelihood ratio, what was chosen, and
    the kernel maps of the features if heads see those."""

    feature_maps: tuple[FeatureMap, ...]
    heads: Heads
    likelihood_ratio: LikelihoodRatio | None = None
    chosen: Mapping[str, Any] | None = None
    kernels: tuple[KernelPCA, ...] = ()


def start_model(
    config: TrainConfig, released: Mapping[str, np.ndarray], table: FeatureTable, validation: FeatureTable
) -> Start:
    """The start that `config.init` names, on the CPU.

    `table` are training items as their scenario shows them, `validation` the items that choose what is left open, `released` the
    projection weights stored beside the features.

    Raises CalmrlError if what a start needs was not stored.
    """
    if config.init == "ppca":
        # What is stacked adds the cosine of the heads and the likelihood ratio, as a sum does.
        judged = {"stacked": "sum", "canonical-cosine": "cosine", "shared-space": "cosine"}.get(
            config.similarity, config.similarity
        )
        return ppca_start(start_by_ppca(table, validation, config.init_options, judged), table)
    if config.init == "identity":
        return identity_start(config, table)
    stored = {m: released[h] for m, h in _STORED_HEADS.items() if m in table.modalities and h in released}
    wanted = config.init == "stored" or (config.init == "auto" and len(stored) == len(table.modalities))
    if not wanted:
        return random_start(config, table)
    if len(stored) < len(table.modalities):
        lacking = [m for m in table.modalities if m not in stored]
        raise CalmrlError(
            f"store '{config.store}' holds no projection weights for: {', '.join(lacking)}", hint="use --set init=random"
        )
    heads = Heads(table.dims, next(iter(stored.values())).shape[0], config.head, seed=config.seed)
    for index, name in enumerate(table.modalities):
        heads.load_linear(index, torch.from_numpy(np.asarray(stored[name], dtype=np.float32)))
    return Start(identities(list(table.dims.values())), heads)


def ppca_start(start: PPCAStart, table: FeatureTable) -> Start:
    """Linear heads that compute the embedding of `start`, over features with equal variances or the kernel principal components as they are."""
    maps: list[FeatureMap] = []
    weights = start.maps.embedding_weights(start.embedding)
    shown = observed_rows(table)
    scales = []
    for index, before in enumerate(start.feature_maps):
        how: Scaling = "standardised" if isinstance(before, Identity) else "centred"
        scaling = fit_scaling(before(shown[index]), how)
        assert isinstance(scaling, Affine)
        # The model knows the centre better than the items do.
        scaling = Affine(start.maps.centres[index].to(scaling.centre), scaling.scale)
        maps.append(scaling if isinstance(before, Identity) else Chain((before, scaling)))
        scales.append(scaling.scale)
    heads = Heads({m: one.dim for m, one in zip(table.modalities, maps, strict=True)}, start.maps.latent_dim)
    for index, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        heads.load_direction(index, weight.T * scale.to(weight))
    kernels = tuple(one for one in start.feature_maps if isinstance(one, KernelPCA))
    return Start(tuple(maps), heads, start.likelihood_ratio, start.chosen, kernels)


def identity_start(config: TrainConfig, table: FeatureTable) -> Start:
    """Linear heads that leave unit-norm features as they are (about their mean with features "centred"): the cosine of embeddings is that of the
    features.

    Modalities of one dimension have the same coordinates; those of another dimension have others, so that nothing is claimed about pairs whose
    features have no cosine. Raises CalmrlError for kernel features and heads that are not linear.
    """
    if config.features == "kernel" or config.head != "linear":
        raise CalmrlError(
            "a start at the features themselves has linear heads and no kernel", hint="use --init random, or --init ppca"
        )
    shown = observed_rows(table)
    dims = list(table.dims.values())
    maps: list[FeatureMap] = [UnitNorm(dim) for dim in dims]
    for index, rows in shown.items():
        if config.features in ("centred", "standardised"):
            maps[index] = Chain((maps[index], fit_scaling(maps[index](rows), config.features)))
    different = list(dict.fromkeys(dims))
    heads = Heads(table.dims, sum(different))
    for index, dim in enumerate(dims):
        start = sum(different[: different.index(dim)])
        weight = torch.zeros(sum(different), dim)
        weight[start : start + dim] = torch.eye(dim)
        heads.load_linear(index, weight)
    return Start(tuple(maps), heads)


def random_start(config: TrainConfig, table: FeatureTable) -> Start:
    """Random heads that send the means of all modalities to one side."""
    shown = observed_rows(table)
    if config.features == "kernel":
        require_two(table, "kernel features need", "other features")
    elif config.features in ("scaled", "raw"):
        _say_which_hardly_differ(shown, table.modalities)
    maps: list[FeatureMap] = list(identities(list(table.dims.values())))
    for index, rows in shown.items():
        maps[index] = fitted_map(rows, config.features)
    heads = Heads({m: one.dim for m, one in zip(table.modalities, maps, strict=True)}, config.dim, config.head, config.seed)
    heads.align_signs({index: maps[index](rows) for index, rows in shown.items()})
    _turn_without_mean(heads, encode(heads, table.mapped(maps)), table.mask, config.features)
    return Start(tuple(maps), heads)


def _say_which_hardly_differ(shown: Mapping[int, Tensor], modalities: Sequence[str]) -> None:
    """A note that names modalities whose features point almost the same way for all items: heads that see them so tell items apart badly."""
    alike = [
        modalities[index]
        for index, rows in shown.items()
        if len(rows) > 1 and float(UnitNorm(rows.shape[1])(rows).mean(dim=0).square().sum()) > _ALIKE
    ]
    if alike and rank() == 0:
        console.note(
            f"features of {console.listed(alike)} point almost the same way for all items (their mean is more than {_ALIKE:.0%} of their squared norm), so that "
            "heads hardly tell items apart; --set features=standardised takes the mean away and gives all coordinates one variance"
        )


def _turn_without_mean(heads: Heads, embeddings: Sequence[Tensor], mask: Tensor, features: str) -> None:
    """Make modalities whose embeddings have a mean of about zero agree with the others, by the items that show two modalities.

    Features that are about their mean as they come are rotated, not only mirrored: an objective made of singular values does not change the
    sign with which two modalities start to agree in a direction. Kernel components, which are always about their mean, are mirrored.
    """
    shown = [rows[mask[:, index]] for index, rows in enumerate(embeddings)]
    free = [index for index, rows in enumerate(shown) if len(rows) and float(rows.mean(dim=0).norm()) < _NO_MEAN]
    if not free or features == "kernel":
        heads.change_signs(best_signs(pair_cosines(embeddings, mask)))
        return
    # Where no modality has a mean, the first one stays.
    for index, rotation in best_rotations(embeddings, mask, free[1:] if len(free) == len(shown) else free).items():
        heads.turn(index, rotation)


def fitted_map(rows: Tensor, features: Scaling | Literal["kernel"]) -> FeatureMap:
    """The feature map that a setting `features` names, fitted to `rows` [n, d]."""
    if features != "kernel":
        return fit_scaling(rows, features)
    kernel = KernelPCA.of(rows)
    return Chain((kernel, fit_scaling(kernel(rows), "centred")))


def observed_rows(table: FeatureTable) -> dict[int, Tensor]:
    """The first row [n_m, d_m] of every item that shows modality m, on the CPU; modalities that no item shows are left out."""
    return {
        index: rows[table.mask[:, index]].cpu()
        for index, rows in enumerate(table.first_rows())
        if bool(table.mask[:, index].any())
    }
