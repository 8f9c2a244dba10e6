"""Signs of projections: which modalities are multiplied by -1 so that the embeddings of one item agree in direction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# With at most this many modalities, all choices of signs are tried.
_EXHAUSTIVE = 12


def pair_cosines(embeddings: Sequence[Float[Tensor, "n d"]], mask: Bool[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """Mean cosine (float64) of the unit-norm embeddings of each pair of modalities over the items that show both; 0 where no item does.

    >>> import torch
    >>> one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> pair_cosines([one, -one], torch.ones(2, 2, dtype=torch.bool)).tolist()
    [[0.0, -1.0], [-1.0, 0.0]]
    """
    count = len(embeddings)
    found = torch.zeros(count, count, dtype=torch.float64)
    for a, b in itertools.combinations(range(count), 2):
        both = mask[:, a] & mask[:, b]
        if bool(both.any()):
            found[a, b] = found[b, a] = (embeddings[a][both].double() * embeddings[b][both].double()).sum(dim=1).mean().cpu()
    return found


def best_signs(cosines: Float[Tensor, "k k"]) -> tuple[int, ...]:
    """The signs s, the first of them +1, with the largest sum of s_a s_b cosines[a, b]; of equal ones, the one with the fewest changes.

    >>> import torch
    >>> best_signs(torch.tensor([[0.0, -0.5], [-0.5, 0.0]]))
    (1, -1)
    """
    count = len(cosines)
    if count > _EXHAUSTIVE:
        return _greedy_signs(cosines)
    choices = [(1, *rest) for rest in itertools.product((1, -1), repeat=count - 1)]
    choices.sort(key=lambda signs: signs.count(-1))
    signs = torch.tensor(choices, dtype=cosines.dtype)
    sums = torch.einsum("sa,ab,sb->s", signs, cosines, signs)
    # Sums that differ by rounding alone are equal.
    best = int(torch.nonzero(sums >= sums.max() - 1e-9)[0])
    return choices[best]


def _greedy_signs(cosines: Float[Tensor, "k k"]) -> tuple[int, ...]:
    """Signs that no change of a single one improves."""
    signs = torch.ones(len(cosines), dtype=cosines.dtype)
    while True:
        agreement = signs * (cosines @ signs)
        worst = int(agreement.argmin())
        if agreement[worst] >= -1e-9:
            return tuple(int(sign * signs[0]) for sign in signs.tolist())
        signs[worst] = -signs[worst]
