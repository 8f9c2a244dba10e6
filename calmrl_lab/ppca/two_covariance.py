"""The two-covariance model of modalities that share a feature space: one covariance between items, one within them.

Features that come from one model (two encoders of CLIP, one text encoder for several texts) lie in one space before anything is trained. The
model says z^m = mu^m + y + e with y ~ N(0, B) common to the modalities of an item and e ~ N(0, W) drawn anew for each: PPCA
(arXiv 2511.12034, section 4) with one loading matrix and one noise covariance for all modalities, known from speaker recognition as the
two-covariance model (Brummer and de Villiers, Odyssey 2010).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.ppca.latent_maps import LatentMaps

# Axes that are kept of a common space of more dimensions; what they leave out counts as carrying nothing.
AXES = 512
# Covariances are kept positive definite by these shares of the mean variance.
_LEAST_BETWEEN, _LEAST_WITHIN = 1e-6, 1e-3
_RANK = 1e-9


@dataclass(frozen=True)
class TwoCovariance:
    """Between-item and within-item covariance, as moments say, of modalities that share a space of d dimensions.

    `means` are k of [d]; `axes` [d, r] are orthonormal principal axes of all modalities together, about their means; `between` (B) and `within`
    (W) are [r, r] on these axes, positive definite, float64.
    """

    means: tuple[Float[Tensor, " d"], ...]
    axes: Float[Tensor, "d r"]
    between: Float[Tensor, "r r"]
    within: Float[Tensor, "r r"]

    @classmethod
    def fit(cls, rows: Sequence[Float[Tensor, "n d"]], mask: Bool[Tensor, "n k"], axes: int = AXES) -> TwoCovariance:
        """From one row per item and modality under `mask`, with gaps as they are, by moments.

        T is the covariance of all observed rows about the mean of their modality, B the mean over observed pairs of modalities of
        (C_ab + C_ba) / 2 with C_ab their cross-covariance, and W = T - B. Raises ValueError unless every modality and at least one pair is
        observed and all have one dimension.

        >>> rows = torch.randn(50, 4, dtype=torch.float64)
        >>> model = TwoCovariance.fit([rows, rows], torch.ones(50, 2, dtype=torch.bool))
        >>> bool(model.between.trace() > 10 * model.within.trace())
        True
        """
        if len({part.shape[1] for part in rows}) != 1 or not bool(mask.any(dim=0).all()):
            raise ValueError("a common space needs modalities of one dimension, each of them observed")
        means = tuple(part[mask[:, j]].double().mean(dim=0) for j, part in enumerate(rows))
        centred = [(part.double() - mean) * mask[:, j : j + 1] for j, (part, mean) in enumerate(zip(rows, means, strict=True))]
        count = int(mask.sum())
        kept, variances = _principal_axes(torch.cat([part[mask[:, j]] for j, part in enumerate(centred)]), axes)
        lying = [part @ kept for part in centred]
        between, pairs = torch.zeros(kept.shape[1], kept.shape[1], dtype=torch.float64), 0
        for a, b in itertools.combinations(range(len(rows)), 2):
            cross = lying[a].T @ lying[b]
            between += cross + cross.T
            pairs += 2 * int((mask[:, a] & mask[:, b]).sum())
        if not pairs:
            raise ValueError("no two modalities of the common space are ever observed together")
        between /= pairs
        total = sum(float(part.square().sum()) for part in centred) / count / rows[0].shape[1]
        within = torch.diag(variances) - between
        return cls(means, kept, _floored(between, _LEAST_BETWEEN * total), _floored(within, _LEAST_WITHIN * total))

    def shrunk(self, within: float, between: float) -> TwoCovariance:
        """The same model with W <- (W + s w I) / (1 + s), w = tr W / r, s = `within`, and B <- B + c t I, t = tr(B + W) / r, c = `between`.

        Few items leave B and W noisy. With s and c towards infinity the likelihood ratio ranks as the inner product of centred features
        does: what was there before anything was fitted is one end of the scale.
        """
        identity = torch.eye(len(self.within), dtype=torch.float64)
        mean_within = float(self.within.trace()) / len(identity)
        mean_total = float((self.within + self.between).trace()) / len(identity)
        return TwoCovariance(
            self.means,
            self.axes,
            self.between + between * mean_total * identity,
            (self.within + within * mean_within * identity) / (1 + within),
        )

    def canonical(self) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
        """Directions V [d, r] on centred features with V'WV = I and V'BV = diag(g), and g >= 0 [r], the variance ratio in each of them."""
        factor = torch.linalg.cholesky((self.within + self.within.T) / 2)
        half = torch.linalg.solve_triangular(factor, self.between, upper=False)
        white = torch.linalg.solve_triangular(factor, half.T, upper=False)
        ratios, vectors = torch.linalg.eigh((white + white.T) / 2)
        return self.axes @ torch.linalg.solve_triangular(factor.T, vectors, upper=True), ratios.clamp_min(0)

    def latent_maps(self, modalities: Sequence[str]) -> LatentMaps:
        """The model as PPCA with one loading matrix for all `modalities`: its likelihood ratio, its posteriors, its embeddings.

        In the coordinates of `canonical` the loadings are diag(sqrt g) and the noise is I, so that the information vector of a row is
        diag(sqrt g) V'(x - mu^m) and its precision diag(g).
        """
        directions, ratios = self.canonical()
        kept = ratios > 1e-9 * float(ratios.max().clamp_min(1e-300))
        directions, ratios = directions[:, kept], ratios[kept]
        weights = directions * ratios.sqrt()
        precisions = torch.diag(ratios).expand(len(modalities), -1, -1).clone()
        return LatentMaps(tuple(modalities), self.means, tuple(weights for _ in modalities), precisions)


def _principal_axes(rows: Float[Tensor, "n d"], most: int) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
    """At most `most` principal axes of centred `rows` and the variances along them, the largest first.

    Up to `most` dimensions all axes are kept, those in which nothing varies too: new items may vary there.
    """
    count, d = rows.shape
    if d <= count or d <= most:
        moments = (rows.T @ rows / count).numpy()
        values, vectors = scipy.linalg.eigh(moments, subset_by_index=[max(d - most, 0), d - 1])
        return torch.from_numpy(vectors).flip(1), torch.from_numpy(values).flip(0).clamp_min(0)
    # Fewer rows than dimensions: the Gram matrix has the same spectrum.
    values, left = torch.linalg.eigh(rows @ rows.T / count)
    values, left = values.flip(0), left.flip(1)
    kept = max(1, min(most, int((values > _RANK * values[0]).sum())))
    values = values[:kept]
    return rows.T @ left[:, :kept] / (count * values).clamp_min(1e-300).sqrt(), values


def _floored(matrix: Float[Tensor, "r r"], least: float) -> Float[Tensor, "r r"]:
    """The symmetric matrix with no eigenvalue below `least`."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(max(least, 1e-300))) @ vectors.T
