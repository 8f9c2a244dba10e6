"""A substitute for the matching loss of VAST: do two embeddings belong to one item? Hard negatives, observed modalities only.

The published systems match a caption with the token sequences of a clip through cross-attention; an embedding-level toolkit has no
tokens. This head sees the two pooled embeddings, their product and their distance. It is a substitute and not comparable in strength.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.runtime.devices import send

_FLOOR = 1e-4  # added to the sampling weights of negatives, as in the published code: no item is excluded for good
_HIDDEN = 128


class MatchingHead(nn.Module):
    """MLP([t, c, t*c, |t-c|]) -> two logits; class 1 = they belong together."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(4 * dim, _HIDDEN)
        self.last = nn.Linear(_HIDDEN, 2)
        for layer in (self.first, self.last):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()

    def forward(
        self,
        queries: Float[Tensor, "b d"],
        contexts: Float[Tensor, "b d"],
        asked: Int[Tensor, " n"],
        answered: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 2"]:
        """Logits of the pairs (queries[asked], contexts[answered])."""
        kind = queries.dtype
        query_part, context_part, product_part, distance_part = self.first.weight.to(kind).chunk(4, dim=1)
        query, context = queries[asked], contexts[answered]
        # The parts that see one side only are computed once per item, not once per pair.
        hidden = (queries @ query_part.mT)[asked] + (contexts @ context_part.mT)[answered] + self.first.bias.to(kind)
        hidden = torch.addmm(hidden, query * context, product_part.mT)
        hidden = torch.addmm(hidden, (query - context).abs(), distance_part.mT)
        return functional.linear(functional.gelu(hidden), self.last.weight.to(kind), self.last.bias.to(kind))


def matching_loss(
    head: MatchingHead,
    queries: Float[Tensor, "b d"],
    contexts: Float[Tensor, "b d"],
    able: Bool[Tensor, " b"],
    generator: torch.Generator,
    logits: Float[Tensor, "b b"],
    same: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Two-way cross-entropy over (query, context) pairs: the true one, one with a hard context, one with a hard query.

    Only items that are `able` (have both sides) take part. Negatives are drawn without gradient as `negative_weights` says, from `logits`: the
    similarity that the objective trains, over a temperature. An item without a possible negative counts with its true pair only where others
    have one; fewer than two able items: a zero that keeps the graph.
    """
    count = len(able)
    own = torch.arange(count, device=able.device)
    with torch.no_grad():
        other = ~torch.eye(count, dtype=torch.bool, device=able.device) if same is None else ~same
        allowed = able.unsqueeze(0) & other
        # Drawn on the CPU, so that runs repeat on every device. Both numbers of an item stand side by side: items added at the end
        # of a batch do not change those before them.
        uniform = 1 - torch.rand(count, 2, generator=generator, dtype=torch.float64)
        uniform = send(uniform.to(logits.dtype), able.device)
        hard_context = _draw(negative_weights(logits, able, allowed), uniform[:, :1])
        hard_query = _draw(negative_weights(logits.mT, able, allowed), uniform[:, 1:])
        possible = able & allowed.any(dim=1)
    matched = head(queries, contexts, torch.cat([own, own, hard_query]), torch.cat([own, hard_context, own]))
    target = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    per_pair = functional.cross_entropy(matched, target, reduction="none")
    counted = torch.cat([able & possible.any(), possible, possible])
    return torch.where(counted, per_pair, 0.0).sum() / counted.sum().clamp_min(1)


def query_and_context(
    embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], query: int
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"], Bool[Tensor, " b"]]:
    """(queries, contexts, able) of items whose hidden entries are zero.

    The query is the item's embedding of modality `query` or, where that is hidden, of its first observed one; the context is the normalised
    sum of its other observed embeddings. Items that show fewer than two modalities are not able.
    """
    first = mask.to(torch.int8).argmax(dim=1)
    chosen = torch.where(mask[:, query], torch.full_like(first, query), first)
    queries = embeddings.gather(1, chosen[:, None, None].expand(-1, 1, embeddings.shape[2])).squeeze(1)
    return queries, functional.normalize(embeddings.sum(dim=1) - queries, dim=1, eps=1e-12), mask.sum(dim=1) >= 2


def negative_weights(
    logits: Float[Tensor, "b b"], able: Bool[Tensor, " b"], allowed: Bool[Tensor, "b b"]
) -> Float[Tensor, "b b"]:
    """Weights by which row i draws its hard negative j: softmax over the `able` columns, plus 1e-4, where `allowed`; 0 elsewhere.

    The item itself is in the softmax and is never drawn, as in the released code of VAST, GRAM, TRIANGLE and PMRL: what its own pair takes
    leaves less to the others, and the 1e-4 weighs more.
    """
    # Finite, so that a batch without able items gives weights and not NaN.
    shares = torch.softmax(logits.masked_fill(~able.unsqueeze(0), -1e9), dim=1)
    return torch.where(allowed, shares + _FLOOR, 0.0)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One column per row in proportion to `weights`, by inverting their cumulative sum at `uniform` in (0, 1]; some column where all are 0."""
    edges = weights.cumsum(dim=1)
    # The first edge that reaches a positive number belongs to a positive weight.
    return torch.searchsorted(edges, uniform * edges[:, -1:]).squeeze(1).clamp_max(len(weights) - 1)
