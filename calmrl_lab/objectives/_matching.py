"""A substitute for the matching loss of VAST: do two embeddings belong to one item? Hard negatives, observed modalities only.

The published systems match a caption with the token sequences of a clip through cross-attention; an embedding-level toolkit has no
tokens. This head sees the two pooled embeddings, their product and their distance. It is a substitute and not comparable in strength.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

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

    def forward(self, query: Float[Tensor, "n d"], context: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        pair = torch.cat([query, context, query * context, (query - context).abs()], dim=1)
        return self.last(functional.gelu(self.first(pair)))


def matching_loss(
    head: MatchingHead, embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], query: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Two-way cross-entropy over (query, context) pairs: the true one, one with a hard context, one with a hard query.

    The query is the item's embedding of modality `query` or, where that is hidden, of its first observed one; the context is the normalised sum of
    its other observed embeddings. Items that show fewer than two modalities take no part. Negatives are drawn in proportion to
    softmax(similarity) + 1e-4 among the other items, without gradient. Fewer than two items: a zero that keeps the graph.
    """
    shown = embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)
    first = mask.to(torch.int8).argmax(dim=1)
    chosen = torch.where(mask[:, query], torch.full_like(first, query), first)
    asked = shown.gather(1, chosen[:, None, None].expand(-1, 1, shown.shape[2])).squeeze(1)
    context = functional.normalize(shown.sum(dim=1) - asked, dim=1, eps=1e-12)
    able = mask.sum(dim=1) >= 2
    with torch.no_grad():
        similarity = asked @ context.mT
        allowed = able.unsqueeze(0) & ~torch.eye(len(able), dtype=torch.bool, device=able.device)
        hard_context = _draw(similarity, allowed, generator)
        hard_query = _draw(similarity.mT, allowed, generator)
    queries = torch.cat([asked, asked, asked[hard_query]])
    contexts = torch.cat([context, context[hard_context], context])
    target = torch.zeros(3 * len(able), dtype=torch.long, device=able.device)
    target[: len(able)] = 1
    per_pair = functional.cross_entropy(head(queries, contexts), target, reduction="none")
    counted = (able & (able.sum() > 1)).repeat(3)
    return torch.where(counted, per_pair, 0.0).sum() / counted.sum().clamp_min(1)


def _draw(similarity: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
    weights = torch.softmax(similarity.double(), dim=1) + _FLOOR
    weights = torch.where(allowed, weights, 0.0)
    # Inverse of the cumulative sum at one uniform number a row: drawn on the CPU, so that runs repeat on every device.
    uniform = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64).to(weights.device)
    edges = weights.cumsum(dim=1)
    drawn = torch.searchsorted(edges, uniform * edges[:, -1:], right=True).squeeze(1)
    return drawn.clamp_max(len(weights) - 1)
