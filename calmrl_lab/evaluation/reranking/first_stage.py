"""The first stage of re-ranking: captions against whole items, by the score that each published system takes for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives

JOINT = "joint"
# VAST's head of each combination of modalities other than the caption, and the order in which it concatenates them.
_HEADS = {
    ("vision",): "contra_head_v", ("audio",): "contra_head_a", ("subtitle",): "contra_head_s",
    ("vision", "audio"): "contra_head_va", ("vision", "subtitle"): "contra_head_vs", ("vision", "audio", "subtitle"): "contra_head_vas",
    # VAST has no head of sound and subtitle, and compares the sound alone.
    ("audio", "subtitle"): "contra_head_a",
}  # fmt: skip
_ORDER = ("vision", "audio", "subtitle")


def first_stage(objective: str, heads: Mapping[str, np.ndarray], dim: int) -> str:
    """The score that a run's system takes before matching: the scorer of its objective (`Objective.scorer`: volume for GRAM, its own fusion for VAST
    trained here, the area for TRIANGLE); for objectives without one, as PMRL and CalMRL do, VAST's fused heads (`joint`) where the store brings
    them and the embeddings of captions are of their dimension, and the centroid elsewhere."""
    name = getattr(objectives.get(objective), "scorer", None) if objective in objectives.names() else None
    if name is not None:
        return str(name)
    fits = "contra_head_va.weight" in heads and len(heads["contra_head_va.weight"]) == dim
    return JOINT if fits else "centroid"


def joint_vectors(
    features: Mapping[str, Float[Tensor, "n d_m"]], mask: Mapping[str, Bool[Tensor, " n"]], heads: Mapping[str, np.ndarray]
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"]]:
    """VAST's fused unit vector of every item, float64, and which items have one.

    `features` are pooled features before any head, `mask` what each item shows of them; `heads` are those that a store of VAST's features brings. An item is
    projected by the head of exactly the combination of vision, audio and subtitle that it shows (joint heads with their bias, single ones have none);
    further modalities are left out. Raises CalmrlError if the store brings no such head.
    """
    names = [name for name in _ORDER if name in features]
    if not names:
        raise CalmrlError(f"VAST's fused heads take {', '.join(_ORDER)}; items have {', '.join(features) or 'nothing'}")
    shown = torch.stack([mask[name] for name in names], dim=1)
    vectors: Tensor | None = None
    for row in torch.unique(shown, dim=0).tolist():
        subset = tuple(name for name, there in zip(names, row, strict=True) if there)
        if not subset:
            continue
        items = (shown == torch.tensor(row, device=shown.device)).all(dim=1)
        weight, bias, takes = _head(subset, heads)
        joined = torch.cat([features[name][items].double() for name in takes], dim=1)
        made = functional.normalize(joined @ weight.to(joined).T + bias.to(joined), dim=1, eps=1e-12)
        vectors = made.new_zeros(len(shown), made.shape[1]) if vectors is None else vectors
        vectors[items] = made
    if vectors is None:
        vectors = torch.zeros(len(shown), len(_head((names[0],), heads)[0]), dtype=torch.float64, device=shown.device)
    return vectors, shown.any(dim=1)


def _head(subset: tuple[str, ...], heads: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Weight, bias and the modalities of the head of a combination."""
    name = _HEADS[subset]
    single = name in heads
    if not single and f"{name}.weight" not in heads:
        raise CalmrlError(
            f"the store brings no head '{name}', which the first stage 'joint' needs for items that show {' and '.join(subset)}",
            hint="extract it with VAST's encoders, or use --first-stage centroid",
        )
    weight = torch.from_numpy(np.asarray(heads[name if single else f"{name}.weight"], dtype=np.float64))
    bias = np.zeros(len(weight)) if single else np.asarray(heads[f"{name}.bias"], dtype=np.float64)
    return weight, torch.from_numpy(bias), subset[:1] if single else subset
