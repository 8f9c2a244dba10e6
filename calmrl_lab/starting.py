"""Where training begins: the heads before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.batches import FeatureTable
from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.heads import Heads

# How VAST, GRAM and PMRL name the projection of each modality in their checkpoints.
_STORED_HEADS = {"vision": "contra_head_v", "audio": "contra_head_a", "caption": "contra_head_t", "subtitle": "contra_head_s"}


def start_heads(config: TrainConfig, released: Mapping[str, np.ndarray], table: FeatureTable) -> Heads:
    """The heads `config.init` asks for, on the CPU; `table` are training items as their scenario shows them, `released` the projection
    weights stored beside the features.

    Raises CalmrlError if what a start needs was not stored.
    """
    stored = {m: released[h] for m, h in _STORED_HEADS.items() if m in table.modalities and h in released}
    wanted = config.init == "stored" or (config.init == "auto" and len(stored) == len(table.modalities))
    if not wanted:
        return random_heads(config, table)
    if len(stored) < len(table.modalities):
        lacking = [m for m in table.modalities if m not in stored]
        raise CalmrlError(
            f"store '{config.store}' holds no projection weights for: {', '.join(lacking)}", hint="use --set init=random"
        )
    heads = Heads(table.dims, next(iter(stored.values())).shape[0], config.head, seed=config.seed)
    for index, name in enumerate(table.modalities):
        heads.load_linear(index, torch.from_numpy(np.asarray(stored[name], dtype=np.float32)))
    return heads


def random_heads(config: TrainConfig, table: FeatureTable) -> Heads:
    """Random heads that send the means of all modalities to one side."""
    heads = Heads(table.dims, config.dim, config.head, seed=config.seed)
    shown = observed_rows(table)
    if config.features != "raw":
        for index, rows in shown.items():
            heads.rescale(index, rows, centred=config.features == "centred")
    heads.share_side(shown)
    return heads


def observed_rows(table: FeatureTable) -> dict[int, Tensor]:
    """The first row [n_m, d_m] of every item that shows modality m, on the CPU; modalities that nobody shows are left out."""
    return {
        index: rows[table.mask[:, index]].cpu()
        for index, rows in enumerate(table.first_rows())
        if bool(table.mask[:, index].any())
    }
