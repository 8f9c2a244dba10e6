"""PPCA with missing modalities: the imputer of CalMRL (arXiv 2511.12034), fitted by exact EM on per-pattern statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations, Pattern, modality_name
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._estimator import Modalities
from calmrl_lab.imputers.base import Imputer, flag, indexed, number, refuse_unconnected, refuse_unobserved, whole
from calmrl_lab.ppca.em import NoiseKind, Parameters, Totals, expect, iterate
from calmrl_lab.ppca.held_out import fold_statistics, merged, split_by_group
from calmrl_lab.ppca.initialisation import complete_case_start, pairwise_start
from calmrl_lab.ppca.posterior import Posterior
from calmrl_lab.ppca.row_span import row_span
from calmrl_lab.ppca.selection import most_likely_latent_dim
from calmrl_lab.ppca.statistics import Statistics

_FOLDS = 5
_STARTS = {"pairwise": pairwise_start, "complete": complete_case_start}


@imputers.register("ppca")
@dataclass(eq=False)
class PPCA(Imputer):
    """Probabilistic PCA over all modalities of an item: a missing one becomes its conditional mean given the observed ones.

    z^m = W^m beta + mu^m + noise, with beta ~ N(0, I_q) shared by the modalities of an item and noise ~ N(0, s_m^2 I). Fitted
    by EM with the exact joint M-step over W and mu on the observed entries only; the likelihood (with a ridge, the posterior)
    never falls (arXiv 2511.12034, section 4).

    latent_dim: q, at least 1 and below the sum of the dimensions; "auto": of 4, 8, ..., 128 the one under which a held-out
    fifth of the items is most likely. shared_noise: one noise variance for all modalities instead of one each. ridge: a
    Gaussian prior N(0, s_m^2 / ridge) on the entries of W, in pseudo-items; 0 is maximum likelihood. With as many pseudo-items
    as items, W is fitted well where there are more dimensions than items. accelerate: SQUAREM extrapolation between EM steps;
    worth it where the likelihood is flat. tolerance: EM stops once an iteration gains less than this many nats per item; 0 never
    stops early. A small one is no promise of better imputation: held-out error can rise while the likelihood does
    (`ppca-auto` stops by held-out error). initialisation: "pairwise" starts from moments of all items that show a pair of
    modalities, "complete" from the complete items only, of which at least two are needed.

    After `fit`, as float64 NumPy: `weights` (k of [d_m, q]), `means` (k of [d_m]), `noise` [k] (variances s_m^2), and
    `log_likelihoods`: the total log-likelihood (nats) of the observed entries under the parameters that enter each iteration,
    and last of the final ones.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import PPCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = PPCA(latent_dim=2).fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca"

    latent_dim: int | Literal["auto"] = 32
    shared_noise: bool = False
    ridge: float = 0.0
    accelerate: bool = False
    tolerance: float = 0.0
    initialisation: Literal["pairwise", "complete"] = "pairwise"

    weights: list[np.ndarray] = field(init=False, repr=False, default_factory=list)
    means: list[np.ndarray] = field(init=False, repr=False, default_factory=list)
    noise: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))
    log_likelihoods: np.ndarray | None = field(init=False, repr=False, default=None)
    _posteriors: dict[Any, Posterior] = field(init=False, repr=False, default_factory=dict)

    @property
    def fits_on_statistics(self) -> bool:
        """True if per-pattern statistics are all that `fit` needs: items may then be seen once, in parts, by several processes."""
        return type(self).fit is PPCA.fit and self.latent_dim != "auto"

    def __post_init__(self) -> None:
        if self.latent_dim != "auto":
            self.latent_dim = whole(self.latent_dim, "latent_dim", 1)
        self.shared_noise, self.accelerate = flag(self.shared_noise, "shared_noise"), flag(self.accelerate, "accelerate")
        self.ridge = number(self.ridge, "ridge")
        self.tolerance = number(self.tolerance, "tolerance", "of nats ")
        if self.initialisation not in tuple(_STARTS):
            raise CalmrlError(f"initialisation is {self.initialisation!r}, expected one of: {', '.join(_STARTS)}")

    def fit(self, embeddings: Modalities, mask: Array | None = None, iterations: int = 50, start: Any = None) -> Self:
        """`iterations` EM iterations (fewer with a `tolerance`) on `embeddings` (k of [N, d_m], NaN allowed where `mask` [N, k] is False).

        Starts from `start` (a fitted PPCA, or anything with `weights`, `means` and `noise` of these shapes, as attributes or
        keys), or else as `initialisation` says. Items with nothing observed are skipped. Cost: one pass over the
        rows, then O(patterns D^2 q) an iteration, whatever N.

        Raises CalmrlError for NaN or infinity at observed entries, shapes that disagree, a latent dimension that is too large,
        a modality that is never observed, and one that no chain of modalities observed together connects with the rest: its
        relation to the others is not identified by any amount of data.
        """
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        if self.latent_dim != "auto" or start is not None:
            return self.fit_statistics(Statistics.of(data), iterations, start)
        parts = fold_statistics(data, split_by_group(len(data), _FOLDS, None, seed=0))
        whole_data = merged(parts)
        refuse_unconnected(whole_data.co_observed(), self.name, self.modalities)
        q = most_likely_latent_dim(merged(parts[1:]), parts[0], self._noise_kind, self.ridge)
        return self._fit_statistics(whole_data, q, whole(iterations, "iterations", 0), None)

    def fit_statistics(self, statistics: Statistics, iterations: int = 50, start: Any = None) -> Self:
        """`fit` from statistics that were accumulated elsewhere: streamed, merged from shards, or with forgetting."""
        q = self.latent_dim
        if q == "auto":
            if start is None:
                raise CalmrlError(
                    "latent_dim is 'auto', which holds items out and so needs the rows", hint="use fit, or give a number"
                )
            q = np.shape(_entry(start, "weights")[0])[-1]
        return self._fit_statistics(statistics, q, whole(iterations, "iterations", 0), start)

    @property
    def _noise_kind(self) -> NoiseKind:
        return "shared" if self.shared_noise else "per-modality"

    def _fit_statistics(self, statistics: Statistics, q: int, iterations: int, start: Any) -> Self:
        most = sum(statistics.sizes) - 1
        if q > most:
            raise CalmrlError(
                f"latent_dim is {q}, but the modalities have only {most + 1} dimensions together", hint=f"use at most {most}"
            )
        refuse_unconnected(statistics.co_observed(), self.name, self.modalities)
        if start is None and (bases := row_span(statistics, q)) is not None:
            statistics = statistics.along(bases)
        dims = statistics.dims
        totals = Totals.of(statistics)
        parameters = self._initial(statistics, totals, q) if start is None else self._started(start, statistics, q)
        columns = self._columns(dims, q, statistics.device)
        items = sum(sums.weight for sums in statistics.patterns.values())
        enough = self.tolerance * items
        parameters, likelihoods = iterate(
            statistics, totals, parameters, iterations, self._noise_kind, float(self.ridge), self.accelerate, columns, enough
        )
        likelihoods.append(expect(statistics, totals, parameters).log_likelihood)
        self._adopt(parameters, statistics, likelihoods)
        return self

    def _initial(self, statistics: Statistics, totals: Totals, q: int) -> Parameters:
        return _STARTS[self.initialisation](statistics, totals, q, self._noise_kind)

    def _columns(self, dims: tuple[int, ...], q: int, device: torch.device) -> list[Tensor] | None:
        """Which latent dimensions each modality depends on; None: all on all."""
        return None

    def _adopt(self, parameters: Parameters, statistics: Statistics, likelihoods: Sequence[float]) -> None:
        dims = statistics.dims
        centred = statistics.features(parameters.mean.split(dims))
        means = [part + shift for part, shift in zip(centred, statistics.shift, strict=True)]
        self.weights = [part.cpu().numpy().copy() for part in statistics.features(parameters.weights.split(dims))]
        self.means = [part.cpu().numpy() for part in means]
        self.noise = parameters.noise.cpu().numpy().copy()
        self.log_likelihoods = np.asarray(likelihoods, dtype=np.float64)
        self.dims = statistics.sizes
        self._posteriors = {}

    def _started(self, start: Any, statistics: Statistics, q: int) -> Parameters:
        weights, means, noise = (_entry(start, key) for key in ("weights", "means", "noise"))
        dims, device = statistics.dims, statistics.device
        if len(weights) != len(dims) or len(means) != len(dims):
            raise CalmrlError(f"start has {len(weights)} weights and {len(means)} means, expected {len(dims)} of each")
        for index, (w, mu, d) in enumerate(zip(weights, means, dims, strict=True)):
            if tuple(w.shape) != (d, q) or tuple(mu.shape) != (d,):
                raise CalmrlError(
                    f"start has weights {list(w.shape)} and means {list(mu.shape)} "
                    f"for {modality_name(self.modalities, index)}, expected [{d}, {q}] and [{d}]"
                )
        variance = torch.as_tensor(np.asarray(noise, dtype=np.float64)).to(device).reshape(-1)
        if variance.shape != (len(dims),) or not bool(((variance > 0) & torch.isfinite(variance)).all()):
            raise CalmrlError(f"start has noise variances {np.asarray(noise).tolist()}, expected {len(dims)} positive numbers")
        stacked = [
            torch.cat([torch.as_tensor(part, dtype=torch.float64).to(device) for part in parts]) for parts in (weights, means)
        ]
        if not bool(torch.isfinite(stacked[0]).all() & torch.isfinite(stacked[1]).all()):
            raise CalmrlError("start has weights or means that are not finite")
        return Parameters(stacked[0], stacked[1] - torch.cat(statistics.shift), variance)

    def _fit(self, data: Observations) -> None:
        self.fit_statistics(Statistics.of(data))

    def posterior(self, observed: Sequence[int], device: torch.device | str = "cpu") -> Posterior:
        """What the modalities `observed` (indices) say about the others: gains, covariance factors, expected errors."""
        place = torch.device(device)
        place = place if place.type in ("cpu", "cuda") else torch.device("cpu")
        key = (tuple(observed), str(place))
        if key not in self._posteriors:
            weights = [torch.from_numpy(w).to(place) for w in self.weights]
            means = [torch.from_numpy(mu).to(place) for mu in self.means]
            self._posteriors[key] = Posterior(weights, means, torch.from_numpy(self.noise).to(place), observed)
        return self._posteriors[key]

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        posterior = self.posterior(pattern.observed, data.device)
        if not pattern.observed:
            return {j: posterior.means[j].expand(len(pattern.rows), -1) for j in pattern.missing}
        latent = posterior.latent([data.values[j][pattern.rows] for j in pattern.observed])
        return {j: posterior.mean(j, latent) for j in pattern.missing}

    def sample(self, embeddings: Sequence[Array], mask: Array, samples: int, generator: torch.Generator) -> list[Array]:
        """`samples` completions of every item: k of [samples, N, d_m], observed entries repeated, missing ones drawn jointly.

        Draws are from the conditional distribution under the model, noise included, so that their mean tends to what `impute`
        gives and their spread to `predicted_error`. Kind, dtype and device as they came in; raises CalmrlError as `impute`
        does.
        """
        data = self._observe_fitted(embeddings, mask)
        samples = whole(samples, "samples", 1)
        completed = [value.expand(samples, *value.shape).clone() for value in data.values]
        for pattern in data.patterns():
            if pattern.missing:
                posterior = self.posterior(pattern.observed, data.device)
                latent = torch.zeros(len(pattern.rows), posterior.covariance.shape[0], dtype=torch.float64, device=data.device)
                if pattern.observed:
                    latent = posterior.latent([data.values[j][pattern.rows] for j in pattern.observed])
                for j, drawn in posterior.draw(latent, pattern.missing, samples, generator).items():
                    completed[j][:, pattern.rows] = drawn.to(completed[j].dtype)
        return [data.returned(value) for value in completed]

    def mirrored(self, signs: Sequence[int]) -> Self:
        """The fitted model for embeddings whose modality j was multiplied by signs[j] (1 or -1): so are its W_j and mu_j."""
        state = self.state()
        for j, sign in enumerate(signs):
            state |= {key: sign * state[key] for key in (f"weights.{j}", f"means.{j}")}
        made = type(self).from_state(state)
        made.modalities = self.modalities
        return made

    def log_likelihood(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Log-density (nats, float64) of the observed entries of every item [N]; 0 for an item that shows nothing."""
        data = self._observe_fitted(embeddings, mask)
        result = torch.zeros(len(data), dtype=torch.float64, device=data.device)
        for pattern in data.patterns():
            if pattern.observed:
                values = [data.values[j][pattern.rows] for j in pattern.observed]
                result[pattern.rows] = self.posterior(pattern.observed, data.device).log_likelihood(values)
        return data.returned(result)

    def predicted_error(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Expected ||z - zhat||^2 of every filled entry [N, k] (float64) under the model; 0 where observed.

        The same for all items of a pattern. It knows nothing of model error: fitted on few items it is over-confident.
        """
        data = self._observe_fitted(embeddings, mask)
        result = torch.zeros(data.mask.shape, dtype=torch.float64, device=data.device)
        for pattern in data.patterns():
            for j in pattern.missing:
                result[pattern.rows, j] = self.posterior(pattern.observed, data.device).expected_error(j)
        return data.returned(result)

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and options as named arrays: weights.0, ..., means.0, ..., noise, log_likelihoods, options."""
        named = {f"weights.{j}": w for j, w in enumerate(self.weights)} | {f"means.{j}": mu for j, mu in enumerate(self.means)}
        likelihoods = np.zeros(0) if self.log_likelihoods is None else self.log_likelihoods
        options = [
            -1 if self.latent_dim == "auto" else self.latent_dim,
            self.shared_noise,
            self.ridge,
            self.accelerate,
            self.tolerance,
            list(_STARTS).index(self.initialisation),
        ]
        return {**named, "noise": self.noise, "log_likelihoods": likelihoods, "options": np.array(options, dtype=np.float64)}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        latent_dim, shared_noise, ridge, accelerate, *later = np.asarray(state["options"]).tolist()
        # Fits that were saved before there was a tolerance or a choice of starts have none.
        self.tolerance = float(later[0]) if later else 0.0
        self.initialisation = list(_STARTS)[int(later[1])] if len(later) > 1 else "pairwise"  # type: ignore[assignment]
        self.latent_dim = "auto" if latent_dim < 0 else int(latent_dim)
        self.shared_noise, self.ridge, self.accelerate = bool(shared_noise), float(ridge), bool(accelerate)
        self.weights, self.means = indexed(state, "weights"), indexed(state, "means")
        self.noise, self.log_likelihoods = np.asarray(state["noise"]), np.asarray(state["log_likelihoods"])
        self.dims = tuple(len(mu) for mu in self.means)
        self._posteriors = {}


def _entry(start: Any, key: str) -> Any:
    value = start.get(key) if isinstance(start, Mapping) else getattr(start, key, None)
    if value is None or len(value) == 0:
        raise CalmrlError(f"start has no '{key}'", hint="give a fitted PPCA, or anything with weights, means and noise")
    return value
