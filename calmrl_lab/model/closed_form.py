"""Heads in closed form: PPCA of the features, gaps as they are, and what each modality alone says about its latent vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.config import build
from calmrl_lab.data.patterns import observe
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.linalg.whitened_pca import WhitenedPCA
from calmrl_lab.model.selection import validation_score
from calmrl_lab.model.similarity import overlap_score
from calmrl_lab.ppca.latent_maps import Embedding, LatentMaps
from calmrl_lab.ppca.statistics import Statistics

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


class StartOptions(BaseModel):
    """Options of a start by PPCA. What is "auto" is chosen on the validation items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: Kernel | Literal["heads"] = Field(
        "none",
        description="rbf: kernel principal components instead of plain ones (calmrl_lab.linalg.kernel_pca); heads: for the heads only, the overlap of "
        "posteriors is of plain ones",
    )
    latent_dim: int | Literal["auto"] = Field("auto", description="dimension of the latent vector, and of the embeddings")
    components: int | Literal["auto"] = Field("auto", description="principal components that are kept of each modality")
    whitening: float | Literal["auto"] = Field(
        "auto", description="0 keeps the deviations of the components, 1 makes them equal, 0.5 takes their square roots"
    )
    noise_scale: float | Literal["auto"] = Field(
        "auto", description="fitted noise variances are multiplied by this: PPCA of few items is too sure of itself"
    )
    iterations: int | Literal["auto"] = Field(
        "auto", description="EM iterations; long before the likelihood is highest, more of them fit chance"
    )
    embedding: Embedding = Field("precision", description="mean or precision (calmrl_lab.ppca.latent_maps)")


@dataclass(frozen=True)
class PPCAStart:
    """The chosen model, its noise as embeddings want it (`maps`) and as the overlap of posteriors wants it (`overlap`), and what was chosen among
    how many candidates."""

    maps: LatentMaps
    overlap: LatentMaps
    embedding: Embedding
    chosen: dict[str, Any]

    @property
    def kernels(self) -> tuple[KernelPCA, ...] | None:
        return self.maps.kernels


@dataclass(frozen=True)
class _Settings:
    latent_dim: int
    components: int
    whitening: float


@dataclass(frozen=True)
class _Space:
    """What models are fitted to: features, or with `kernels` their kernel principal components, on their principal axes.

    `components` are those of `lifts` for the training items, before any whitening; `validation` the validation items before the axes.
    """

    kernels: tuple[KernelPCA, ...] | None
    lifts: list[WhitenedPCA]
    components: list[Tensor]
    validation: list[Tensor]

    @classmethod
    def of(cls, kernel: Kernel, table: FeatureTable, validation: FeatureTable, most: int) -> _Space:
        train, held_out, on_axes, kernels = table.first_rows(), validation.first_rows(), WhitenedPCA.of, None
        if kernel == "rbf":
            kernels = tuple(KernelPCA.of(rows[table.mask[:, j]], most) for j, rows in enumerate(train))
            train, held_out = ([k(rows) for k, rows in zip(kernels, part, strict=True)] for part in (train, held_out))
            on_axes = WhitenedPCA.of_coordinates
        lifts = [on_axes(rows[table.mask[:, j]].double(), most) for j, rows in enumerate(train)]
        return cls(kernels, lifts, [lift.apply(rows) for lift, rows in zip(lifts, train, strict=True)], held_out)

    def widest(self) -> int:
        """The most components that any modality has."""
        return max(len(lift.deviation) for lift in self.lifts)

    def dimensions(self, components: int) -> int:
        """Of all modalities together, with at most so many components each."""
        return sum(min(components, len(lift.deviation)) for lift in self.lifts)


@dataclass(frozen=True)
class _Found:
    """A model as EM left it after so many iterations, the best noise scale for each way of comparing, and how well it then does."""

    maps: LatentMaps
    iterations: int
    scales: dict[str, float]
    reached: float


def start_by_ppca(table: FeatureTable, validation: FeatureTable, options: Mapping[str, Any], score: str) -> PPCAStart:
    """PPCA of the standardised, partly whitened features of `table` (under its mask); "auto" options by the mean reciprocal rank of
    `validation` under `score` (cosine, overlap, or the mean of both), one option after the other. With kernel "heads" there are two models:
    one of kernel principal components for the cosine, one of plain ones for the overlap.

    Raises CalmrlError for unknown options, a latent dimension that the features do not allow, and a modality that no item shows.
    """
    asked = build(StartOptions, options, "init_options")
    # Small float64 problems, one after the other: nothing for a GPU.
    table, validation = table.on("cpu"), validation.on("cpu")
    require_two(table, "a start by PPCA needs", "--init random")
    if asked.kernel != "heads":
        return _search(table, validation, asked, asked.kernel, score)
    if score == "overlap":
        return _search(table, validation, asked, "none", score)
    heads = _search(table, validation, asked, "rbf", "cosine")
    if score == "cosine":
        return heads
    beside = _search(table, validation, asked, "none", "overlap")
    chosen = {
        **heads.chosen,
        "kernel": "heads",
        "overlap_noise_scale": beside.chosen["overlap_noise_scale"],
        "validation_mrr": (heads.chosen["validation_mrr"] + beside.chosen["validation_mrr"]) / 2,
        "candidates": heads.chosen["candidates"] + beside.chosen["candidates"],
        "overlap": {name: beside.chosen[name] for name in ("latent_dim", "components", "whitening", "iterations")},
    }
    return PPCAStart(heads.maps, beside.overlap, asked.embedding, chosen)


def require_two(table: FeatureTable, what: str, otherwise: str) -> None:
    """CalmrlError unless at least two items of `table` show each modality; `what` says who needs them, `otherwise` what to use in its place."""
    for name, count in zip(table.modalities, table.mask.sum(dim=0).tolist(), strict=True):
        if count < 2:
            raise CalmrlError(
                f"{what} at least two training items with '{name}', there are {count}",
                hint=f"leave it out with --modalities, or use {otherwise}",
            )


def _search(table: FeatureTable, validation: FeatureTable, asked: StartOptions, kernel: Kernel, score: str) -> PPCAStart:
    """Uphill from the first settings, one option after the other."""
    space = _Space.of(kernel, table, validation, _most(asked.components))
    judge = _Judge(space, validation, asked, score)
    found: dict[_Settings, _Found] = {}

    def reached(settings: _Settings) -> float:
        if settings not in found:
            found[settings] = _stopped_early(table, space, settings, asked.iterations, judge)
        return found[settings].reached

    best = _first(asked, table, space)
    for option in (name for name in _TRIED if getattr(asked, name) == "auto"):
        best = max(_alternatives(best, option, space), key=reached)
    reached(best)
    model, candidates = found[best], judge.candidates
    scales = judge.all_scales(model)
    maps = replace(model.maps, kernels=space.kernels)
    return PPCAStart(
        maps.tempered(scales["cosine"]),
        maps.tempered(scales["overlap"]),
        asked.embedding,
        {
            "kernel": kernel,
            "latent_dim": best.latent_dim, "components": best.components, "whitening": best.whitening, "iterations": model.iterations,
            "noise_scale": scales["cosine"], "overlap_noise_scale": scales["overlap"], "embedding": asked.embedding,
            "validation_mrr": model.reached, "candidates": candidates,
        },
    )  # fmt: skip


class _Judge:
    """How well models do on validation items, each at the noise scale that suits it."""

    def __init__(self, space: _Space, validation: FeatureTable, asked: StartOptions, score: str) -> None:
        self.validation = validation
        self.rows = space.validation
        self.embedding = asked.embedding
        self.fixed = None if asked.noise_scale == "auto" else asked.noise_scale
        self.ways = ("cosine", "overlap") if score == "both" else (score,)
        self.candidates = 0
        self._near = dict.fromkeys(("cosine", "overlap"), _FIRST_SCALE)

    def __call__(self, maps: LatentMaps, iterations: int) -> _Found:
        best = {way: self._best_scale(maps, way) for way in self.ways}
        return _Found(
            maps,
            iterations,
            {way: scale for way, (scale, _) in best.items()},
            sum(score for _, score in best.values()) / len(best),
        )

    def all_scales(self, found: _Found) -> dict[str, float]:
        """The noise scales of `found` for the ways of comparing that were asked for, and for the others."""
        return {way: found.scales.get(way) or self._best_scale(found.maps, way)[0] for way in ("cosine", "overlap")}

    def _best_scale(self, maps: LatentMaps, way: str) -> tuple[float, float]:
        """Uphill from where the last model was best."""
        evidence = [maps.information_vector(index, rows) for index, rows in enumerate(self.rows)]
        small = maps.of_evidence()
        compared: Callable[[LatentMaps, Sequence[Tensor]], float] = self._cosine if way == "cosine" else self._overlap
        seen: dict[float, float] = {}

        def score(scale: float) -> float:
            if scale not in seen:
                seen[scale] = compared(small.tempered(scale), evidence)
                self.candidates += 1
            return seen[scale]

        if self.fixed is not None:
            return self.fixed, score(self.fixed)
        place = _SCALES.index(self._near[way])
        for step in (1, -1):
            while 0 <= place + step < len(_SCALES) and score(_SCALES[place + step]) > score(_SCALES[place]):
                place += step
        self._near[way] = _SCALES[place]
        return _SCALES[place], score(_SCALES[place])

    def _cosine(self, maps: LatentMaps, rows: Sequence[Tensor]) -> float:
        weights = maps.embedding_weights(self.embedding)
        embeddings = [normalize(x @ w, dim=1) for x, w in zip(rows, weights, strict=True)]
        return validation_score(embeddings, self.validation)["validation_mrr"]

    def _overlap(self, maps: LatentMaps, rows: Sequence[Tensor]) -> float:
        return overlap_score(maps, rows, self.validation)["validation_mrr"]


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


def _stopped_early(table: FeatureTable, space: _Space, settings: _Settings, iterations: int | str, judge: _Judge) -> _Found:
    """PPCA under `settings`, after as many EM iterations as validation likes (or `iterations`)."""
    chosen = [lift.whitened(settings.components, settings.whitening) for lift in space.lifts]
    values = [part[:, : len(lift.factor)] * lift.factor for lift, part in zip(chosen, space.components, strict=True)]
    statistics = Statistics.of(observe(values, table.mask, table.modalities))
    model = PPCA(latent_dim=settings.latent_dim)
    model.modalities = table.modalities
    best: _Found | None = None
    done = 0
    for stage in _STAGES if isinstance(iterations, str) else (iterations,):
        model.fit_statistics(statistics, stage - done, start=model if done else None)
        done = stage
        found = judge(_maps(model, chosen), done)
        if best is not None and found.reached <= best.reached:
            break
        best = found
    assert best is not None
    return best


def _maps(model: PPCA, lifts: Sequence[WhitenedPCA]) -> LatentMaps:
    centres, maps, precisions = [], [], []
    for index, lift in enumerate(lifts):
        weights, noise = torch.from_numpy(model.weights[index]), float(model.noise[index])
        centres.append(lift.backwards(torch.from_numpy(model.means[index])))
        maps.append(lift.through(weights / noise))
        precisions.append(weights.T @ weights / noise)
    return LatentMaps(tuple(model.modalities or ()), tuple(centres), tuple(maps), torch.stack(precisions))
