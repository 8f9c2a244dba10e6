"""Gradient of each loss term with respect to the embeddings of a batch: its size, and the share of items that it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# A term whose pull on an item is below this will not move it in any number of steps that anyone takes.
FLOOR = 1e-3


class TermGradient(NamedTuple):
    """Gradient of a term with respect to the embeddings.

    pull: root mean square over the items of its norm, times the number of items: the change of an item's own loss per unit of movement.
    alive: share of the items whose pull exceeds the floor.
    """

    pull: float
    alive: float


def term_gradients(
    objective: nn.Module,
    embeddings: Float[Tensor, "b k d"],
    mask: Bool[Tensor, "b k"],
    imputed: Float[Tensor, "b k d"] | None = None,
    groups: Int[Tensor, " b"] | None = None,
    floor: float = FLOOR,
) -> dict[str, TermGradient]:
    """Pull and alive share of every term (`loss` included) that depends on the embeddings, over the items that show anything.

    Made for PMRL's alignment, whose softmax over singular values saturates at its released temperature: with VAST-like values (1.85, .46, .44,
    .42) and tau 0.05 the loss is 0.0 in float32 and so is its gradient. Costs one backward pass per term; draws no random
    number that training would miss and leaves no gradient behind.
    """
    generator = getattr(objective, "generator", None)
    state = None if generator is None else generator.get_state()
    with torch.enable_grad():
        leaf = embeddings.detach().clone().requires_grad_()
        # An objective of another package may know no groups.
        terms = objective(leaf, mask, imputed) if groups is None else objective(leaf, mask, imputed, groups)
        found = {name: _pull(term, leaf, mask, floor) for name, term in terms.items() if term.requires_grad}
    if generator is not None and state is not None:
        generator.set_state(state)
    return {name: value for name, value in found.items() if value is not None}


def _pull(term: Tensor, leaf: Tensor, mask: Tensor, floor: float) -> TermGradient | None:
    (gradient,) = torch.autograd.grad(term, leaf, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    showing = mask.any(dim=1)
    norms = gradient.double().flatten(1).norm(dim=1)[showing] * int(showing.sum())
    if not len(norms):
        return TermGradient(0.0, 0.0)
    return TermGradient(float(norms.square().mean().sqrt()), float((norms > floor).double().mean()))


def saturated(found: Mapping[str, TermGradient], least: float = 0.5) -> list[str]:
    """Names of the terms that reach fewer than a share `least` of the items."""
    return [name for name, value in found.items() if value.alive < least]
