"""Signs and rotations of projections: how modalities are multiplied so that the embeddings of one item agree in direction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# With at most this many modalities, all choices of signs are tried.
_EXHAUSTIVE = 12
# Rotations are found from at most this many items that show two modalities, in at most so many rounds.
_TURNING_ITEMS, _ROUNDS = 20_000, 30
# Directions in which modalities have less than this share of their strongest covariance are left as they are.
_UNTOLD = 1e-2


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


def best_rotations(
    embeddings: Sequence[Float[Tensor, "n d"]], mask: Bool[Tensor, "n k"], free: Sequence[int]
) -> dict[int, Float[Tensor, "d d"]]:
    """Orthogonal matrices R_m (float64) of the modalities `free`: rows z_m R_m have the largest sum of mean cosines over the pairs of modalities
    that items show, while the other modalities stay as they are.

    One sign per modality is not enough where two modalities agree in some directions and are opposed in others. Each R_m in turn is the best
    for the others as they are (orthogonal Procrustes; Schoenemann, Psychometrika 1966), until nothing changes any more.

    >>> import torch
    >>> one = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0], [2.0, -1.0], [3.0, 1.0]]), dim=1)
    >>> best_rotations([one, one * torch.tensor([1.0, -1.0])], torch.ones(3, 2, dtype=torch.bool), [1])[1].round().abs().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    count, dim = len(embeddings), embeddings[0].shape[1]
    covariances: dict[tuple[int, int], Tensor] = {}
    for a, b in itertools.combinations(range(count), 2):
        both = torch.nonzero(mask[:, a] & mask[:, b]).squeeze(1)[:_TURNING_ITEMS]
        if len(both):
            found = (embeddings[a][both].double().T @ embeddings[b][both].double() / len(both)).cpu()
            covariances[a, b], covariances[b, a] = found, found.T
    turned = {index: torch.eye(dim, dtype=torch.float64) for index in range(count)}
    placed = set(range(count)) - set(free)
    for _ in range(_ROUNDS):
        moved = 0.0
        for index in free:
            # In the first round, those that have not been turned yet have nothing to say.
            parts = [covariances[index, b] @ turned[b] for b in placed - {index} if (index, b) in covariances]
            placed.add(index)
            if not parts:
                continue
            target = torch.stack(parts).sum(dim=0)
            # Directions that no pair says anything about stay as they are, whatever rounding makes of them.
            target = target + _UNTOLD * torch.linalg.matrix_norm(target, 2) * turned[index]
            left, _, right = torch.linalg.svd(target)
            moved = max(moved, float((left @ right - turned[index]).abs().max()))
            turned[index] = left @ right
        if moved < 1e-9:
            break
    return {index: turned[index] for index in free}


def _greedy_signs(cosines: Float[Tensor, "k k"]) -> tuple[int, ...]:
    """Signs that no change of a single one improves."""
    signs = torch.ones(len(cosines), dtype=cosines.dtype)
    while True:
        agreement = signs * (cosines @ signs)
        worst = int(agreement.argmin())
        if agreement[worst] >= -1e-9:
            return tuple(int(sign * signs[0]) for sign in signs.tolist())
        signs[worst] = -signs[worst]
