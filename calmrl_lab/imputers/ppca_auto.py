"""PPCA whose settings, gains and predicted errors are chosen on held-out items; what does not help there is left out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations, Pattern
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._estimator import Modalities
from calmrl_lab.imputers.base import indexed, refuse_unconnected, refuse_unobserved, whole
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.combination import CombinedAgreement, improved_gains, sum_of
from calmrl_lab.ppca.em import Parameters, Totals, iterate
from calmrl_lab.ppca.held_out import (
    Agreement,
    Target,
    conditional_mean,
    fold_statistics,
    merged,
    possible_targets,
    split_by_group,
    targets_of,
)
from calmrl_lab.ppca.regression import STRENGTHS, Regression, Sources, work
from calmrl_lab.ppca.row_span import row_span
from calmrl_lab.ppca.selection import Choice, Fold, choose, pseudo_items
from calmrl_lab.ppca.statistics import Statistics
from calmrl_lab.runtime.progress import tracked

# Folds that settings are chosen on, and folds that gains and errors are estimated on: of few items, and of as many as `_MANY_ITEMS`.
_SEARCH_FOLDS, _SEARCH_FOLDS_OF_MANY = 2, 1
_CHECKED_FOLDS_OF_MANY = 3
_MANY_ITEMS = 500
# The largest is what the items allow, at most 128; a strong prior makes the rest of it harmless.
_LATENT_DIMS = (2, 4, 8, 16, 32)
_MOST_LATENT_DIMS = 128
_LARGEST_GAIN = 2.0
# A target's own items count for as much as this many items of its modality's other targets.
_POOLED_ITEMS = 30.0
# Targets whose gain is estimated; k modalities have k (2^(k-1) - 1), 186 for six and 1,016 for eight.
_MOST_TARGETS = 256
# Targets for which a regression is tried, the items that it takes, and the share of PPCA's held-out error that it has to take away.
_MOST_REGRESSIONS = 24
_LEAST_ITEMS = 20
_LEAST_GAINED = 0.005
# What regressions may cost, as a multiple of what the statistics and a start of PPCA take, so many products with the moments; and multiplications
# that are never too many (a second or two).
_REGRESSION_SHARE = 2.0
_FEW_MULTIPLICATIONS = 2e10
_PRODUCTS_OF_A_START = 32.0
# Standard errors by which a held-out improvement has to exceed zero.
_CONFIDENCE = 1.0


@imputers.register("ppca-auto")
@dataclass(eq=False)
class AutoPPCA(PPCA):
    """PPCA with everything chosen on held-out items: latent dimension, prior, iterations, and how far to trust each imputation.

    Every conditional mean is drawn towards the modality's mean by a gain in [0, 2], one for each set of observed modalities and
    each missing one, estimated by cross-fitting; where held-out items show no improvement beyond chance the gain is 0, and the
    result is mean imputation. Where features are many and modalities have much that they do not share, a ridge regression of the missing modality
    on the observed ones, of the items that show both, may know what a latent vector of at most 128 dimensions does not: for the targets of
    training where that lowers the held-out error it is added to the conditional mean, each of the two with a gain of its own that is not
    negative. `predicted_error` is the held-out error, not what the model believes. All of it is computed from statistics of folds, so it costs
    EM iterations and no passes over rows.

    latent_dim: q, or "auto" (2 to 128 by held-out imputation error). ridge: pseudo-items of the prior on W, or "auto".
    folds: parts that items are split into, of which three are held out in turn where items are many; items of one group (`fit(..., groups=...)`) stay together, which matters where items
    have near duplicates. seed: of that split.

    After `fit`, besides what `PPCA` has: `choice` (latent_dim, ridge as a share of items, iterations), `gains` and `errors`,
    dictionaries from (observed modalities, missing modality), as indices, to the gain of the conditional mean and the held-out squared error per
    item; `regressions` are those that are added, times their gains. They
    hold what the gaps of training ask for, and what new items may ask for besides (256 targets at most). What is not among them goes
    by the largest part of what it shows that is; where no item can check a target (modalities never seen together), by the
    modality's other targets.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import AutoPPCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = AutoPPCA().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca-auto"
    takes_groups: ClassVar[bool] = True

    latent_dim: int | Literal["auto"] = "auto"
    ridge: float | Literal["auto"] = "auto"  # type: ignore[assignment]
    folds: int = 5
    seed: int = 0

    choice: Choice | None = field(init=False, repr=False, default=None)
    gains: dict[Target, float] = field(init=False, repr=False, default_factory=dict)
    errors: dict[Target, float] = field(init=False, repr=False, default_factory=dict)
    regressions: dict[Target, Regression] = field(init=False, repr=False, default_factory=dict)
    references: list[np.ndarray] = field(init=False, repr=False, default_factory=list)
    # Squared error per item of the mean of each modality.
    variances: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))
    # Gain and error for targets of which nothing is known, a modality each.
    pooled_gains: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))
    pooled_errors: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        wanted = self.ridge
        if wanted == "auto":
            self.ridge = 0.0
        super().__post_init__()
        self.ridge = wanted
        if self.initialisation != "pairwise":
            raise CalmrlError("imputer 'ppca-auto' starts from pairwise moments only", hint="use the imputer 'ppca'")
        self.folds = whole(self.folds, "folds", 2)
        self.seed = whole(self.seed, "seed", 0)

    def fit(
        self,
        embeddings: Modalities,
        mask: Array | None = None,
        iterations: int = 50,
        start: Any = None,
        groups: Sequence[object] | None = None,
    ) -> Self:
        """At most `iterations` EM iterations on `embeddings` (k of [N, d_m]) where `mask` [N, k] is True; the held-out error
        decides.

        `groups` [N]: items of one group stay in one fold. `start`, if it is a fitted AutoPPCA, lends its choice of settings,
        and EM goes on from its parameters; the gains are estimated afresh. Raises CalmrlError as `PPCA.fit` does.
        """
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        if groups is not None and len(groups) != len(data):
            raise CalmrlError(f"{len(groups)} groups were given for {len(data)} items")
        return self.fit_folds(
            fold_statistics(data, split_by_group(len(data), self.folds, groups, self.seed)), iterations, start
        )

    @property
    def fits_on_folds(self) -> bool:
        """True: statistics of every fold of the items are all that `fit` needs, and items may then be seen once, in parts."""
        return True

    def fit_folds(self, parts: Sequence[Statistics], iterations: int = 50, start: Any = None) -> Self:
        """`fit` from the statistics of the folds, accumulated elsewhere in the same coordinates (`split_by_group` draws the folds)."""
        everything = merged(parts)
        refuse_unconnected(everything.co_observed(), self.name, self.modalities)
        if start is None and (bases := row_span(everything, 1 if self.latent_dim == "auto" else self.latent_dim)) is not None:
            parts = [part.along(bases) for part in parts]
            everything = everything.along(bases)
        counts = {observed: sums.count for observed, sums in everything.patterns.items()}
        weights = self._targets(counts, len(everything.dims))
        iterations = whole(iterations, "iterations", 0)
        going_on = isinstance(start, AutoPPCA) and start.choice is not None and start.dims == everything.sizes
        lent = start.choice if going_on else None
        folds = [part for part in (self._fold(parts, index) for index in range(len(parts))) if part is not None]
        many = sum(counts.values()) >= _MANY_ITEMS
        folds = folds[:_CHECKED_FOLDS_OF_MANY] if many else folds
        searched = folds[: _SEARCH_FOLDS_OF_MANY if many else _SEARCH_FOLDS]
        self.choice = lent or self._choose(searched, everything, weights, iterations)
        self._fit_chosen(everything, self.choice, iterations if start is not None else self.choice.iterations, start)
        totals = Totals.of(everything)
        centred = [t / n for t, n in zip(totals.total, totals.count, strict=True)]
        means = [mean + shift for mean, shift in zip(everything.features(centred), everything.shift, strict=True)]
        self.references = [mean.cpu().numpy() for mean in means]
        fitted = [self._fit_fold(fold) for fold in tracked(folds, "held-out errors", unit="folds")]
        self._estimate_gains(folds, fitted, *self._checked_targets(weights, len(everything.dims)), everything, totals)
        self._try_regressions(folds, fitted, list(weights), everything, centred)
        return self

    def fit_statistics(self, statistics: Statistics, iterations: int = 50, start: Any = None) -> Self:
        """Not possible: held-out items have to be told apart first. Raises CalmrlError."""
        raise CalmrlError("imputer 'ppca-auto' holds items out and so needs the rows", hint="use fit, or the imputer 'ppca'")

    def _fold(self, parts: Sequence[Statistics], index: int) -> Fold | None:
        """The split that holds out part `index`; None if what is left does not identify the model."""
        if len(parts) < 2:
            return None
        training = merged(part for place, part in enumerate(parts) if place != index)
        try:
            refuse_unconnected(training.co_observed(), self.name, self.modalities)
        except CalmrlError:
            return None
        return Fold.of(training, parts[index])

    def _targets(self, counts: Mapping[tuple[int, ...], float], k: int) -> dict[Target, float]:
        """What settings are chosen for: targets with the number of items that ask for each (`counts`: items of every pattern); all alike where
        no item has a gap."""
        count = dict(sorted(counts.items(), key=lambda entry: -entry[1]))
        wanted = targets_of(count, k) or list(possible_targets(k))
        return {target: count.get(target[0], 1.0) for target in wanted[:_MOST_TARGETS]}

    def _checked_targets(self, weights: Mapping[Target, float], k: int) -> tuple[list[Target], list[Target]]:
        """Targets whose gains are estimated: those that the gaps of training ask for, and others that new items may ask for."""
        asked = list(weights)
        seen = set(asked)
        others = (target for target in possible_targets(k) if target not in seen)
        return asked, list(itertools.islice(others, _MOST_TARGETS - len(asked)))

    def _choose(self, folds: list[Fold], everything: Statistics, weights: dict[Target, float], iterations: int) -> Choice:
        items = sum(sums.count for sums in everything.patterns.values())
        most = max(1, min(sum(everything.sizes) - 1, int(items // 2), _MOST_LATENT_DIMS))
        dims = (
            sorted({most, *(q for q in _LATENT_DIMS if q < most)}, reverse=True)
            if self.latent_dim == "auto"
            else [self.latent_dim]
        )
        if dims[0] >= sum(everything.sizes):
            raise CalmrlError(
                f"latent_dim is {dims[0]}, but the modalities have only {sum(everything.sizes)} dimensions together",
                hint=f"use at most {sum(everything.sizes) - 1}",
            )
        if not folds:
            return Choice(dims[-1], 1.0, iterations, float("inf"))
        if self.ridge != "auto":
            share = float(self.ridge) / max(pseudo_items(folds[0].totals, 1.0), 1.0)
            return choose(folds, weights, dims, iterations, self._noise_kind, ridges=[share])
        return choose(folds, weights, dims, iterations, self._noise_kind)

    def _fit_chosen(self, everything: Statistics, choice: Choice, iterations: int, start: Any) -> None:
        wanted, self.ridge = self.ridge, pseudo_items(Totals.of(everything), choice.ridge)
        try:
            self._fit_statistics(everything, choice.latent_dim, iterations, start)
        finally:
            self.ridge = wanted

    def _fit_fold(self, fold: Fold) -> Parameters:
        """PPCA of the training items of a fold under the settings that were chosen."""
        assert self.choice is not None
        start, ridge = fold.start(self.choice.latent_dim, self._noise_kind), pseudo_items(fold.totals, self.choice.ridge)
        return iterate(fold.training, fold.totals, start, self.choice.iterations, self._noise_kind, ridge)[0]

    def _estimate_gains(
        self,
        folds: Sequence[Fold],
        fitted: Sequence[Parameters],
        asked: list[Target],
        others: list[Target],
        everything: Statistics,
        totals: Totals,
    ) -> None:
        found = [fold.score(parameters, [*asked, *others]) for fold, parameters in zip(folds, fitted, strict=True)]
        k = len(everything.dims)
        self.variances = (totals.scatter / totals.count).cpu().numpy()
        # A modality is judged by those of its entries that are missing in training; where it never is, by all that can be hidden.
        alike = [[t for t in asked if t[1] == m] or [t for t in others if t[1] == m] for m in range(k)]
        pooled = [[sum((scores[t] for t in alike[m]), Agreement()) for scores in found] for m in range(k)]
        self.pooled_gains, self.pooled_errors = np.zeros(k), self.variances.copy()
        for m in range(k):
            self.pooled_gains[m], self.pooled_errors[m] = gated(pooled[m], float(self.variances[m]))
        self.gains, self.errors = {}, {}
        for target in (*asked, *others):
            own = [scores[target] for scores in found]
            if sum(agreement.count for agreement in own) == 0:
                continue
            kin = pooled[target[1]]
            share = _POOLED_ITEMS / max(sum(agreement.count for agreement in kin), 1.0)
            blended = [mine + other.scaled(share) for mine, other in zip(own, kin, strict=True)]
            self.gains[target], self.errors[target] = gated(blended, float(self.variances[target[1]]))

    def _try_regressions(
        self,
        folds: Sequence[Fold],
        fitted: Sequence[Parameters],
        asked: list[Target],
        everything: Statistics,
        reference: Sequence[Tensor],
    ) -> None:
        """Add a regression to the conditional mean for those of the targets `asked` whose held-out error is lower that way; their gains and errors
        follow."""
        self.regressions = {}
        items, size = sum(sums.count for sums in everything.patterns.values()), sum(everything.dims)
        allowed = _REGRESSION_SHARE * (items + _PRODUCTS_OF_A_START * _MOST_LATENT_DIMS) * size**2
        left = max(allowed, _FEW_MULTIPLICATIONS)
        for target in tracked(asked[:_MOST_REGRESSIONS], "regressions beside PPCA", unit="targets"):
            left -= (len(folds) + 1) * work(everything, target)
            if left < 0 or target not in self.errors:
                continue
            found = self._beside(folds, fitted, target)
            if len(found) < 2:
                continue
            tried = {strength: [of[place] for of in found] for place, strength in enumerate(STRENGTHS)}
            totals = {strength: sum_of(parts) for strength, parts in tried.items()}
            best = min(STRENGTHS, key=lambda strength: totals[strength].error(totals[strength].best_gains(_LARGEST_GAIN)))
            before = (self.gains[target], 0.0)
            improved = improved_gains(tried[best], before, _LEAST_GAINED, _CONFIDENCE, _LARGEST_GAIN)
            if improved is None or improved[0][1] == 0:
                continue
            final = Sources.of(everything, target, reference, _LEAST_ITEMS)
            if final is not None:
                gains, self.errors[target] = improved
                self.gains[target] = float(gains[0])
                self.regressions[target] = final.at(best, everything, float(gains[1]))

    def _beside(self, folds: Sequence[Fold], fitted: Sequence[Parameters], target: Target) -> list[list[CombinedAgreement]]:
        """For every fold with items enough, conditional mean and regression at every strength."""
        found = []
        for fold, parameters in zip(folds, fitted, strict=True):
            reference = fold.reference
            sources = Sources.of(fold.training, target, reference, _LEAST_ITEMS)
            if sources is not None:
                mean = conditional_mean(parameters, target, fold.training.dims, reference)
                found.append(sources.beside(fold.held_out, mean))
        return found

    def _gain_and_error(self, observed: tuple[int, ...], missing: int) -> tuple[float, float]:
        """What held-out items say about the target, or about the largest part of it that they can speak of; the mean where nothing
        is observed."""
        if not observed:
            return 0.0, float(self.variances[missing])
        target = self._known(observed, missing)
        if target is None:
            return float(self.pooled_gains[missing]), float(self.pooled_errors[missing])
        return self.gains[target], self.errors[target]

    def _known(self, observed: tuple[int, ...], missing: int) -> Target | None:
        """The target itself, or the largest part of it, that held-out items can speak of."""
        if (observed, missing) in self.gains:
            return observed, missing
        parts = [known for known in self.gains if known[1] == missing and set(known[0]) <= set(observed)]
        return max(parts, key=lambda part: (len(part[0]), -self.errors[part]), default=None)

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        filled = {}
        for j, values in super()._fill(data, pattern).items():
            reference = torch.from_numpy(self.references[j]).to(values)
            gain, _ = self._gain_and_error(pattern.observed, j)
            regression = self.regressions.get(self._known(pattern.observed, j) or ((), j))
            filled[j] = reference + gain * (values - reference) if gain else reference.expand_as(values)
            if regression is not None:
                filled[j] = filled[j] + regression(self._deviations(data, pattern, regression.observed).to(values))
        return filled

    def _deviations(self, data: Observations, pattern: Pattern, modalities: Sequence[int]) -> Tensor:
        """What the items of `pattern` show of `modalities`, side by side, about the references, float64."""
        parts = [data.values[j][pattern.rows].double() for j in modalities]
        centres = [torch.from_numpy(self.references[j]).to(part) for j, part in zip(modalities, parts, strict=True)]
        return torch.cat([part - centre for part, centre in zip(parts, centres, strict=True)], dim=1)

    def predicted_error(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Held-out squared error of every filled entry [N, k] (float64), by observed and missing modality; 0 where observed."""
        data = self._observe_fitted(embeddings, mask)
        result = torch.zeros(data.mask.shape, dtype=torch.float64, device=data.device)
        for pattern in data.patterns():
            for j in pattern.missing:
                result[pattern.rows, j] = self._gain_and_error(pattern.observed, j)[1]
        return data.returned(result)

    def mirrored(self, signs: Sequence[int]) -> Self:
        """As `PPCA.mirrored`; so are the references, and the regressions on both sides."""
        made = super().mirrored(signs)
        made.references = [sign * reference for sign, reference in zip(signs, self.references, strict=True)]
        for (observed, missing), regression in self.regressions.items():
            sides = torch.cat([torch.full((len(self.references[j]),), signs[j]) for j in observed])
            made.regressions[observed, missing] = Regression(
                observed, sides.to(regression.left).unsqueeze(1) * regression.left, signs[missing] * regression.right
            )
        return made

    def state(self) -> dict[str, np.ndarray]:
        """As `PPCA.state`, with the choice, the gains and the held-out errors."""
        asked, self.ridge = self.ridge, -1.0 if self.ridge == "auto" else self.ridge
        base = super().state()
        self.ridge = asked
        assert self.choice is not None
        bits = [sum(1 << j for j in observed) for observed, _ in self.gains]
        regressed = {
            f"regression.{side}.{place}": getattr(self.regressions[target], side).cpu().numpy()
            for place, target in enumerate(self.gains)
            if target in self.regressions
            for side in ("left", "right")
        }
        return {
            **base,
            **regressed,
            **{f"references.{j}": mean for j, mean in enumerate(self.references)},
            "choice": np.array([self.choice.latent_dim, self.choice.ridge, self.choice.iterations, self.choice.score]),
            "folds": np.array([self.folds, self.seed]),
            "targets": np.array([bits, [m for _, m in self.gains]], dtype=np.int64),
            "gains": np.array([list(self.gains.values()), list(self.errors.values())], dtype=np.float64),
            "pooled": np.stack([self.pooled_gains, self.pooled_errors, self.variances]),
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        if self.ridge < 0:  # type: ignore[operator]
            self.ridge = "auto"
        self.references = indexed(state, "references")
        q, ridge, iterations, score = np.asarray(state["choice"]).tolist()
        self.choice = Choice(int(q), ridge, int(iterations), score)
        self.folds, self.seed = (int(value) for value in state["folds"])
        k = len(self.references)
        targets = [(tuple(j for j in range(k) if bits >> j & 1), int(m)) for bits, m in np.asarray(state["targets"]).T.tolist()]
        gains, errors = np.asarray(state["gains"]).tolist()
        self.gains, self.errors = dict(zip(targets, gains, strict=True)), dict(zip(targets, errors, strict=True))
        self.regressions = {}
        for place, target in enumerate(targets):
            if f"regression.left.{place}" in state:
                left, right = (torch.from_numpy(np.array(state[f"regression.{side}.{place}"])) for side in ("left", "right"))
                self.regressions[target] = Regression(target[0], left, right)
        self.pooled_gains, self.pooled_errors, self.variances = np.asarray(state["pooled"])


def gated(folds: Sequence[Agreement], variance: float) -> tuple[float, float]:
    """The gain that held-out items support, and the squared error per item that goes with it.

    Each fold is scored at the gain of the others; unless the improvement over the reference exceeds its standard error over
    folds, the gain is 0. Without held-out items: gain 0 and `variance`.
    """
    total = sum(folds, Agreement())
    used = [fold for fold in folds if fold.count > 0]
    if total.count == 0:
        return 0.0, variance
    unit = total.energy / total.count
    closed = 0.0, unit
    if len(used) < 2 or unit == 0:
        return closed
    improvements = []
    for index, fold in enumerate(used):
        rest = sum((other for place, other in enumerate(used) if place != index), Agreement())
        improvements.append((fold.energy - fold.error(rest.best_gain(_LARGEST_GAIN))) / fold.count / unit)
    spread = float(np.std(improvements, ddof=1)) / len(improvements) ** 0.5
    if not np.mean(improvements) > _CONFIDENCE * spread:
        return closed
    gain = total.best_gain(_LARGEST_GAIN)
    return gain, total.error(gain) / total.count
