"""Start in closed form: PPCA fitted to features with gaps, and from it a map of each modality alone to the latent vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.config import MOST, Settings, build
from calmrl_lab.data.patterns import observe
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.linalg.whitened_pca import WhitenedPCA
from calmrl_lab.model.feature_map import FeatureMap, identities
from calmrl_lab.model.selection import validation_score
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Sum
from calmrl_lab.ppca.latent_maps import Embedding, LatentMaps
from calmrl_lab.ppca.statistics import Statistics
from calmrl_lab.runtime.progress import tracked

Kernel = Literal["none", "rbf"]
# Where the search begins, and what it tries, in this order.
_START = {"latent_dim": 128, "components": 200, "whitening": 0.25}
_TRIED: dict[str, tuple[Any, ...]] = {
    "whitening": (0.0, 0.5),
    "components": (100, 400),
    "latent_dim": (64, 192),
}
# EM stops at the first of these that validation likes less than the one before.
_STAGES = (2, 6, 20)
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_FIRST_SCALE = 8.0


class StartOptions(Settings):
    """Options of a start by PPCA. What is "auto" is chosen on the validation items."""

    kernel: Kernel | Literal["heads"] = Field(
        "none",
        description="rbf: kernel principal components instead of plain ones (calmrl_lab.linalg.kernel_pca); heads: for the heads only, the "
        "likelihood ratio is of plain ones",
    )
    latent_dim: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="dimension of the latent vector, and of the embeddings"
    )
    components: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="principal components that are kept of each modality"
    )
    whitening: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        "auto", description="0 keeps the deviations of the components, 1 makes them equal, 0.5 takes their square roots"
    )
    noise_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        "auto", description="fitted noise variances are multiplied by this: PPCA of few items is over-confident"
    )
    iterations: Annotated[int, Field(ge=0, le=MOST)] | Literal["auto"] = Field(
        "auto", description="EM iterations; long before the likelihood is highest, more of them fit chance"
    )
    embedding: Embedding = Field("precision", description="mean or precision (calmrl_lab.ppca.latent_maps)")


@dataclass(frozen=True)
class PPCAStart:
    """The chosen model in two forms, and what was chosen among how many candidates.

    `feature_maps` and `maps`, with the noise that suits embeddings, are for heads; `likelihood_ratio` compares items without heads.
    """

    feature_maps: tuple[FeatureMap, ...]
    maps: LatentMaps
    likelihood_ratio: LikelihoodRatio
    embedding: Embedding
    chosen: dict[str, Any]


@dataclass(frozen=True)
class _Settings:
    latent_dim: int
    components: int
    whitening: float


@dataclass(frozen=True)
class _Space:
    """What models are fitted to: features, or their kernel principal components (`feature_maps`), on their principal axes.

    `components` are those on `axes` of the training items, before any whitening; `validation` the validation items before the axes.
    """

    feature_maps: tuple[FeatureMap, ...]
    axes: list[WhitenedPCA]
    components: list[Tensor]
    validation: list[Tensor]

    @classmethod
    def of(cls, kernel: Kernel, table: FeatureTable, validation: FeatureTable, most: int) -> _Space:
        train, held_out, on_axes = table.first_rows(), validation.first_rows(), WhitenedPCA.of
        maps = identities([rows.shape[1] for rows in train])
        if kernel == "rbf":
            maps = tuple(KernelPCA.of(rows[table.mask[:, j]], most) for j, rows in enumerate(train))
            train, held_out = ([one(rows) for one, rows in zip(maps, part, strict=True)] for part in (train, held_out))
            on_axes = WhitenedPCA.of_coordinates
        axes = [on_axes(rows[table.mask[:, j]].double(), most) for j, rows in enumerate(train)]
        return cls(maps, axes, [one.apply(rows) for one, rows in zip(axes, train, strict=True)], held_out)

    def widest(self) -> int:
        """The most components that any modality has."""
        return max(len(one.deviation) for one in self.axes)

    def dimensions(self, components: int) -> int:
        """Of all modalities together, with at most so many components each."""
        return sum(min(components, len(one.deviation)) for one in self.axes)


@dataclass(frozen=True)
class _Found:
    """A model as EM left it after so many iterations, the best noise scale for each way of comparing, and how well it then does."""

    maps: LatentMaps
    iterations: int
    scales: dict[str, float]
    reached: float


def start_by_ppca(table: FeatureTable, validation: FeatureTable, options: Mapping[str, Any], similarity: str) -> PPCAStart:
    """PPCA of the standardised, partly whitened features of `table` (under its mask); "auto" options by the mean reciprocal rank of
    `validation` under `similarity` (cosine, likelihood-ratio, or sum: the mean over both), one option after the other. With kernel "heads"
    there are two models: one of kernel principal components for the cosine, one of plain ones for the likelihood ratio.

    Raises CalmrlError for unknown options, a latent dimension that the features do not allow, and a modality that no item shows.
    """
    asked = build(StartOptions, options, "init_options")
    # Small float64 problems, one after the other: nothing for a GPU.
    table, validation = table.on("cpu"), validation.on("cpu")
    require_two(table, "a start by PPCA needs", "--init random")
    if asked.kernel != "heads":
        return _search(table, validation, asked, asked.kernel, similarity)
    if similarity == LikelihoodRatio.name:
        return _search(table, validation, asked, "none", similarity)
    heads = _search(table, validation, asked, "rbf", Cosine.name)
    if similarity == Cosine.name:
        return heads
    beside = _search(table, validation, asked, "none", LikelihoodRatio.name)
    chosen = {
        **heads.chosen,
        "kernel": "heads",
        "likelihood_ratio_noise_scale": beside.chosen["likelihood_ratio_noise_scale"],
        "validation_mrr": (heads.chosen["validation_mrr"] + beside.chosen["validation_mrr"]) / 2,
        "candidates": heads.chosen["candidates"] + beside.chosen["candidates"],
        "likelihood_ratio": {name: beside.chosen[name] for name in ("latent_dim", "components", "whitening", "iterations")},
    }
    return PPCAStart(heads.feature_maps, heads.maps, beside.likelihood_ratio, asked.embedding, chosen)


def require_two(table: FeatureTable, what: str, otherwise: str) -> None:
    """CalmrlError unless at least two items of `table` show each modality; `what` says who needs them, `otherwise` what to use in its place."""
    for name, count in zip(table.modalities, table.mask.sum(dim=0).tolist(), strict=True):
        if count < 2:
            raise CalmrlError(
                f"{what} at least two training items with '{name}', there are {count}",
                hint=f"leave it out with --modalities, or use {otherwise}",
            )


def _search(table: FeatureTable, validation: FeatureTable, asked: StartOptions, kernel: Kernel, similarity: str) -> PPCAStart:
    """Coordinate ascent from the first settings, one option after the other."""
    space = _Space.of(kernel, table, validation, _most(asked.components))
    scoring = _ValidationScore(space, validation, asked, similarity)
    found: dict[_Settings, _Found] = {}

    def reached(settings: _Settings) -> float:
        if settings not in found:
            found[settings] = _stopped_early(table, space, settings, asked.iterations, scoring)
        return found[settings].reached

    best = _first(asked, table, space)
    options = [name for name in _TRIED if getattr(asked, name) == "auto"]
    for option in tracked(options, "choosing the start by PPCA", unit="options"):
        best = max(_alternatives(best, option, space), key=reached)
    reached(best)
    model, candidates = found[best], scoring.candidates
    scales = scoring.all_scales(model)
    return PPCAStart(
        space.feature_maps,
        model.maps.noise_scaled(scales[Cosine.name]),
        LikelihoodRatio(model.maps.noise_scaled(scales[LikelihoodRatio.name]), space.feature_maps),
        asked.embedding,
        {
            "kernel": kernel,
            "latent_dim": best.latent_dim, "components": best.components, "whitening": best.whitening, "iterations": model.iterations,
            "noise_scale": scales[Cosine.name], "likelihood_ratio_noise_scale": scales[LikelihoodRatio.name], "embedding": asked.embedding,
            "validation_mrr": model.reached, "candidates": candidates,
        },
    )  # fmt: skip


class _ValidationScore:
    """Validation scores of models, each at its best noise scale."""

    def __init__(self, space: _Space, validation: FeatureTable, asked: StartOptions, similarity: str) -> None:
        self.validation = validation
        self.rows = space.validation
        self.embedding = asked.embedding
        self.fixed = None if asked.noise_scale == "auto" else asked.noise_scale
        self.similarities = (Cosine.name, LikelihoodRatio.name) if similarity == Sum.name else (similarity,)
        self.candidates = 0
        self._near = dict.fromkeys((Cosine.name, LikelihoodRatio.name), _FIRST_SCALE)

    def __call__(self, maps: LatentMaps, iterations: int) -> _Found:
        best = {name: self._best_scale(maps, name) for name in self.similarities}
        return _Found(
            maps,
            iterations,
            {name: scale for name, (scale, _) in best.items()},
            sum(score for _, score in best.values()) / len(best),
        )

    def all_scales(self, found: _Found) -> dict[str, float]:
        """The noise scales of `found` for the similarities that were asked for, and for the others."""
        return {name: found.scales.get(name) or self._best_scale(found.maps, name)[0] for name in self._near}

    def _best_scale(self, maps: LatentMaps, name: str) -> tuple[float, float]:
        """The best noise scale under similarity `name` and its score, found uphill from where the last model was best."""
        vectors = [maps.information_vector(index, rows) for index, rows in enumerate(self.rows)]
        small = maps.of_information_vectors()
        compared = self._by_cosine if name == Cosine.name else self._by_likelihood_ratio
        seen: dict[float, float] = {}

        def score(scale: float) -> float:
            if scale not in seen:
                seen[scale] = compared(small.noise_scaled(scale), vectors)
                self.candidates += 1
            return seen[scale]

        if self.fixed is not None:
            return self.fixed, score(self.fixed)
        place = _SCALES.index(self._near[name])
        for step in (1, -1):
            while 0 <= place + step < len(_SCALES) and score(_SCALES[place + step]) > score(_SCALES[place]):
                place += step
        self._near[name] = _SCALES[place]
        return _SCALES[place], score(_SCALES[place])

    def _by_cosine(self, maps: LatentMaps, rows: Sequence[Tensor]) -> float:
        weights = maps.embedding_weights(self.embedding)
        embeddings = [normalize(x @ w, dim=1) for x, w in zip(rows, weights, strict=True)]
        return validation_score(Cosine(maps.latent_dim), embeddings, self.validation)["validation_mrr"]

    def _by_likelihood_ratio(self, maps: LatentMaps, rows: Sequence[Tensor]) -> float:
        ratio = LikelihoodRatio(maps, identities([maps.latent_dim] * len(rows)))
        vectors = [maps.information_vector(index, x) for index, x in enumerate(rows)]
        return validation_score(ratio, vectors, self.validation)["validation_mrr"]


def _most(components: int | str) -> int:
    tried = (_START["components"], *_TRIED["components"])
    return int(max(tried)) if isinstance(components, str) else components


def _first(asked: StartOptions, table: FeatureTable, space: _Space) -> _Settings:
    values: dict[str, Any] = {name: _START[name] if getattr(asked, name) == "auto" else getattr(asked, name) for name in _START}
    most = space.dimensions(values["components"]) - 1
    if asked.latent_dim != "auto" and not 1 <= asked.latent_dim <= most:
        raise CalmrlError(
            f"init_options: latent_dim is {asked.latent_dim}, and the components of {', '.join(table.modalities)} allow 1 to {most}"
        )
    components = min(int(values["components"]), space.widest())
    return _Settings(min(int(values["latent_dim"]), max(most, 1)), components, float(values["whitening"]))


def _alternatives(best: _Settings, option: str, space: _Space) -> Iterator[_Settings]:
    yield best
    for value in _TRIED[option]:
        settings = replace(best, **{option: value})
        # More components than any modality has are the same model again.
        settings = replace(settings, components=min(settings.components, space.widest()))
        if settings.latent_dim < space.dimensions(settings.components):
            yield settings


def _stopped_early(
    table: FeatureTable, space: _Space, settings: _Settings, iterations: int | str, scoring: _ValidationScore
) -> _Found:
    """PPCA under `settings`, after the number of EM iterations that is best on validation (or `iterations`)."""
    chosen = [one.whitened(settings.components, settings.whitening) for one in space.axes]
    values = [part[:, : len(one.factor)] * one.factor for one, part in zip(chosen, space.components, strict=True)]
    statistics = Statistics.of(observe(values, table.mask, table.modalities))
    model = PPCA(latent_dim=settings.latent_dim)
    model.modalities = table.modalities
    best: _Found | None = None
    done = 0
    for stage in _STAGES if isinstance(iterations, str) else (iterations,):
        model.fit_statistics(statistics, stage - done, start=model if done else None)
        done = stage
        found = scoring(_maps(model, chosen), done)
        if best is not None and found.reached <= best.reached:
            break
        best = found
    assert best is not None
    return best


def _maps(model: PPCA, axes: Sequence[WhitenedPCA]) -> LatentMaps:
    centres, maps, precisions = [], [], []
    for index, one in enumerate(axes):
        weights, noise = torch.from_numpy(model.weights[index]), float(model.noise[index])
        centres.append(one.backwards(torch.from_numpy(model.means[index])))
        maps.append(one.through(weights / noise))
        precisions.append(weights.T @ weights / noise)
    return LatentMaps(tuple(model.modalities or ()), tuple(centres), tuple(maps), torch.stack(precisions))
