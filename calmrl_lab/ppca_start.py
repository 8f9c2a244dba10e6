"""Heads in closed form: PPCA of the features, gaps as they are, and what each modality alone says about its latent vector."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.batches import FeatureTable
from calmrl_lab.config import build
from calmrl_lab.errors import CalmrlError
from calmrl_lab.heads import CONSTANT
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.latent import EMBEDDINGS, Embedding, LatentMaps
from calmrl_lab.validation import mean_ranks, validation_score

# Principal components weaker than this share of the strongest are rounding.
_RANK = 1e-5
# Where the search begins, and what it tries, in this order.
_START = {"latent_dim": 96, "components": 200, "whitening": 0.5}
_TRIED: dict[str, tuple[Any, ...]] = {
    "whitening": (0.25, 0.75),
    "components": (100,),
    "latent_dim": (32, 64, 128, 192),
}


class StartOptions(BaseModel):
    """Options of a start by PPCA. What is "auto" is chosen on the validation items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_dim: int | Literal["auto"] = Field("auto", description="dimension of the latent vector, and of the embeddings")
    components: int | Literal["auto"] = Field("auto", description="principal components that are kept of each modality")
    whitening: float | Literal["auto"] = Field(
        "auto", description="0 keeps the deviations of the components, 1 makes them equal, 0.5 takes their square roots"
    )
    embedding: Embedding | Literal["auto"] = Field("auto", description="mean, precision or natural (calmrl_lab.latent)")
    iterations: int = Field(20, ge=1, description="EM iterations")


@dataclass(frozen=True)
class PPCAStart:
    """`maps` of the chosen model, the embedding that heads start from, and what was chosen among how many candidates."""

    maps: LatentMaps
    embedding: Embedding
    chosen: dict[str, Any]


@dataclass(frozen=True)
class _Lift:
    """Standardised features on their principal axes: axes' (x - centre) / scale, still with the deviations `deviation` [r]."""

    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    axes: Float[Tensor, "d r"]
    deviation: Float[Tensor, " r"]


@dataclass(frozen=True)
class _Settings:
    latent_dim: int
    components: int
    whitening: float


def start_by_ppca(table: FeatureTable, validation: FeatureTable, options: Mapping[str, Any], score: str) -> PPCAStart:
    """PPCA of the standardised, partly whitened features of `table` (under its mask); "auto" options by the mean reciprocal rank of
    `validation` under `score` (cosine, overlap, or the mean of both), one option after the other.

    Raises CalmrlError for unknown options, a latent dimension that the features do not allow, and a modality that no item shows.
    """
    asked = build(StartOptions, options, "init_options")
    shown = [rows[table.mask[:, j]].double().cpu() for j, rows in enumerate(table.first_rows())]
    for name, rows in zip(table.modalities, shown, strict=True):
        if len(rows) < 2:
            raise CalmrlError(
                f"a start by PPCA needs at least two training items with '{name}', there are {len(rows)}",
                hint="leave it out with --modalities, or use --init random",
            )
    lifts = [_lifted(rows, _most(asked.components)) for rows in shown]
    found: dict[_Settings, tuple[float, Embedding, LatentMaps]] = {}

    def tried(settings: _Settings) -> float:
        if settings not in found:
            maps = _fit(table, lifts, settings, asked.iterations)
            found[settings] = max(
                ((_score(maps, kind, validation, score), kind, maps) for kind in _kinds(asked, score)),
                key=operator.itemgetter(0),
            )
        return found[settings][0]

    best = _first(asked, table, lifts)
    for option in (name for name in _TRIED if getattr(asked, name) == "auto"):
        best = max(_alternatives(best, option, table, lifts), key=tried)
    tried(best)
    reached, embedding, maps = found[best]
    about = {"latent_dim": best.latent_dim, "components": best.components, "whitening": best.whitening, "embedding": embedding}
    return PPCAStart(maps, embedding, {**about, "validation_mrr": reached, "candidates": len(found)})


def _most(components: int | str) -> int:
    return int(_START["components"]) if isinstance(components, str) else components


def _kinds(asked: StartOptions, score: str) -> Sequence[Embedding]:
    if asked.embedding != "auto":
        return (asked.embedding,)
    return ("precision",) if score == "overlap" else EMBEDDINGS


def _first(asked: StartOptions, table: FeatureTable, lifts: Sequence[_Lift]) -> _Settings:
    values: dict[str, Any] = {name: _START[name] if getattr(asked, name) == "auto" else getattr(asked, name) for name in _START}
    most = sum(min(values["components"], len(lift.deviation)) for lift in lifts) - 1
    if asked.latent_dim != "auto" and not 1 <= asked.latent_dim <= most:
        raise CalmrlError(
            f"init_options: latent_dim is {asked.latent_dim}, and the components of {', '.join(table.modalities)} allow 1 to {most}"
        )
    return _Settings(min(int(values["latent_dim"]), max(most, 1)), int(values["components"]), float(values["whitening"]))


def _alternatives(best: _Settings, option: str, table: FeatureTable, lifts: Sequence[_Lift]) -> Iterator[_Settings]:
    yield best
    for value in _TRIED[option]:
        settings = replace(best, **{option: value})
        if settings.latent_dim < sum(min(settings.components, len(lift.deviation)) for lift in lifts):
            yield settings


def _lifted(rows: Float[Tensor, "n d"], components: int) -> _Lift:
    centre = rows.mean(dim=0)
    spread = (rows - centre).square().mean(dim=0).sqrt()
    common = spread.square().mean().sqrt().clamp_min(1e-300)
    scale = torch.where(spread > CONSTANT * common, spread, common)
    standard = (rows - centre) / scale
    n, d = standard.shape
    # The smaller of the two moment matrices; the other one has the same spectrum.
    if d <= n:
        values, axes = torch.linalg.eigh(standard.T @ standard / n)
        axes = axes.flip(1)
        values = values.flip(0).clamp_min(0)
    else:
        values, left = torch.linalg.eigh(standard @ standard.T / n)
        values, left = values.flip(0).clamp_min(0), left.flip(1)
        axes = standard.T @ left / (n * values).clamp_min(1e-300).sqrt()
    deviation = values.sqrt()
    kept = max(1, min(components, int((deviation > _RANK * deviation[0]).sum())))
    return _Lift(centre, scale, axes[:, :kept], deviation[:kept].clamp_min(1e-12))


def _fit(table: FeatureTable, lifts: Sequence[_Lift], settings: _Settings, iterations: int) -> LatentMaps:
    factors, lifted = [], []
    for lift, rows in zip(lifts, table.first_rows(), strict=True):
        deviation = lift.deviation[: settings.components]
        factor = deviation.pow(-settings.whitening)
        factor = factor / (deviation * factor).square().mean().sqrt()
        axes = lift.axes[:, : settings.components]
        factors.append(factor)
        lifted.append(((rows.double().cpu() - lift.centre) / lift.scale) @ (axes * factor))
    model = PPCA(latent_dim=settings.latent_dim)
    model.modalities = table.modalities
    model.fit([values.numpy() for values in lifted], table.mask.cpu().numpy(), iterations=iterations)
    centres, maps, precisions = [], [], []
    for index, (lift, factor) in enumerate(zip(lifts, factors, strict=True)):
        weights, mean = torch.from_numpy(model.weights[index]), torch.from_numpy(model.means[index])
        noise = float(model.noise[index])
        axes = lift.axes[:, : settings.components]
        centres.append(lift.centre + lift.scale * (axes @ (mean / factor)))
        maps.append(((axes * factor) / lift.scale.unsqueeze(1)) @ (weights / noise))
        precisions.append(weights.T @ weights / noise)
    return LatentMaps(table.modalities, tuple(centres), tuple(maps), torch.stack(precisions))


def _score(maps: LatentMaps, kind: Embedding, validation: FeatureTable, score: str) -> float:
    if score == "both":
        return (_score(maps, kind, validation, "cosine") + _score(maps, kind, validation, "overlap")) / 2
    rows = [values.cpu() for values in validation.first_rows()]
    if score == "overlap":
        return overlap_score(maps, rows, validation)["validation_mrr"]
    weights = maps.embedding_weights(kind)
    embeddings = [normalize((x.double() - c) @ w, dim=1) for x, c, w in zip(rows, maps.centres, weights, strict=True)]
    return validation_score(embeddings, validation)["validation_mrr"]


def overlap_score(maps: LatentMaps, rows: Sequence[Float[Tensor, "n d_m"]], table: FeatureTable) -> dict[str, float]:
    """`validation_score` of features under the overlap of posteriors instead of cosines."""

    def one_way(a: int, b: int, both: Tensor) -> Tensor:
        left, right = maps.compared(a, b, rows[a][both], rows[b][both])
        return left @ right.T

    def compared(a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        return one_way(a, b, both), one_way(b, a, both)

    return mean_ranks(compared, table)
