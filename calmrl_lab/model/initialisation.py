"""Where training begins: the heads before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model.closed_form import PPCAStart, require_two, start_by_ppca
from calmrl_lab.model.encode import encode
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.signs import best_signs, pair_cosines

# How VAST, GRAM and PMRL name the projection of each modality in their checkpoints.
_STORED_HEADS = {"vision": "contra_head_v", "audio": "contra_head_a", "caption": "contra_head_t", "subtitle": "contra_head_s"}


def start_heads(
    config: TrainConfig, released: Mapping[str, np.ndarray], table: FeatureTable, validation: FeatureTable
) -> tuple[Heads, PPCAStart | None]:
    """The heads `config.init` asks for, on the CPU, and the model they come from if that is PPCA.

    `table` are training items as their scenario shows them, `validation` the items that choose what is left open, `released` the
    projection weights stored beside the features.

    Raises CalmrlError if what a start needs was not stored.
    """
    if config.init == "ppca":
        start = start_by_ppca(table, validation, config.init_options, config.score)
        return ppca_heads(start, table), start
    stored = {m: released[h] for m, h in _STORED_HEADS.items() if m in table.modalities and h in released}
    wanted = config.init == "stored" or (config.init == "auto" and len(stored) == len(table.modalities))
    if not wanted:
        return random_heads(config, table), None
    if len(stored) < len(table.modalities):
        lacking = [m for m in table.modalities if m not in stored]
        raise CalmrlError(
            f"store '{config.store}' holds no projection weights for: {', '.join(lacking)}", hint="use --set init=random"
        )
    heads = Heads(table.dims, next(iter(stored.values())).shape[0], config.head, seed=config.seed)
    for index, name in enumerate(table.modalities):
        heads.load_linear(index, torch.from_numpy(np.asarray(stored[name], dtype=np.float32)))
    return heads, None


def ppca_heads(start: PPCAStart, table: FeatureTable) -> Heads:
    """Linear heads that compute the embedding of `start`, over features with equal variances or the kernel principal components as they are."""
    heads = Heads(table.dims, start.maps.latent_dim, kernels=start.kernels)
    for index, rows in observed_rows(table).items():
        heads.rescale(index, rows, "centred" if start.kernels else "standardised")
    for index, weight in enumerate(start.maps.embedding_weights(start.embedding)):
        heads.load_affine(index, weight.T, start.maps.centres[index])
    return heads


def random_heads(config: TrainConfig, table: FeatureTable) -> Heads:
    """Random heads that send the means of all modalities to one side."""
    shown, features, kernels = observed_rows(table), config.features, None
    if features == "kernel":
        require_two(table, "kernel features need", "other features")
        features, kernels = "centred", [KernelPCA.of(rows) for rows in shown.values()]
    heads = Heads(table.dims, config.dim, config.head, config.seed, kernels)
    if features != "raw":
        for index, rows in shown.items():
            heads.rescale(index, rows, features)
    heads.align_signs(shown)
    # Modalities without a mean are told apart by the items that show two of them.
    heads.change_signs(best_signs(pair_cosines(encode(heads, table), table.mask)))
    return heads


def observed_rows(table: FeatureTable) -> dict[int, Tensor]:
    """The first row [n_m, d_m] of every item that shows modality m, on the CPU; modalities that nobody shows are left out."""
    return {
        index: rows[table.mask[:, index]].cpu()
        for index, rows in enumerate(table.first_rows())
        if bool(table.mask[:, index].any())
    }
