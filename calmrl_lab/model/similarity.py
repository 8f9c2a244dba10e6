"""How two items are compared: by the cosine of their embeddings, by a likelihood ratio, or by a weighted sum of similarities.

A similarity says which vector stands for one row of features (`vectors`); everything else is computed from these vectors: pairs of rows
(`pair_vectors`), a query and an item that shows any subset of the modalities (`set_scores`), and items as single vectors for a search index
(`item_vectors`, `query_vectors`). A new similarity is a class with these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model import feature_map
from calmrl_lab.model.feature_map import FeatureMap
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.registry import known

# What an item may show, as names of modalities: the items of one index show one of these each.
Patterns = Sequence[Sequence[str]]


_KINDS: dict[str, Any] = {}
Kind = TypeVar("Kind", bound=type)


def similarity_kind(kind: Kind) -> Kind:
    """Decorator that lets similarities of a class be read back by `read`, under its `name`; it has a classmethod `read(description, tensors, prefix)`."""
    _KINDS[kind.name] = kind  # type: ignore[attr-defined]
    return kind


class Similarity(Protocol):
    """How rows of features are compared. Modalities are given by name; `dim` is the length r of the vectors that stand for rows."""

    name: ClassVar[str]
    # Whether `pair_vectors` of queries and candidates also ranks the queries for each candidate.
    symmetric: ClassVar[bool]

    @property
    def dim(self) -> int: ...

    def vectors(
        self, modality: str, features: Float[Tensor, "n d_m"], embeddings: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n r"]:
        """What stands for rows of one modality, of which the features and the unit-norm embeddings are given."""

    def pair_vectors(
        self, query: str, gallery: str, queries: Float[Tensor, "a r"], candidates: Float[Tensor, "b r"]
    ) -> tuple[Float[Tensor, "a s"], Float[Tensor, "b s"]]:
        """Vectors whose inner product is the similarity of a query and a candidate, up to a term that depends on the query alone."""

    def set_scores(
        self,
        query: str,
        shown: Sequence[str],
        queries: Float[Tensor, "a r"],
        items: Float[Tensor, "g k r"],
        mask: Bool[Tensor, "g k"],
    ) -> Float[Tensor, "a g"]:
        """Similarity of each query with each item, of which `mask` says what it shows of the k modalities `shown`; hidden entries are zero."""

    def item_vectors(
        self, shown: Sequence[str], patterns: Patterns, items: Float[Tensor, "g k r"], mask: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "g s"]:
        """One vector per item, float64, whose inner product with `query_vectors` is `set_scores`; zeros for items that show nothing."""

    def query_vectors(
        self, shown: Sequence[str], patterns: Patterns, query: str, queries: Float[Tensor, "a r"]
    ) -> Float[Tensor, "a s"]:
        """The vectors, float64, of queries of one modality for a search among `item_vectors` of the same `shown` and `patterns`."""

    def to(self, device: torch.device | str) -> Self:
        """The same similarity on another device."""

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `read` needs: a description that fits into JSON, and tensors by name, all names beginning with `prefix`."""


@similarity_kind
@dataclass(frozen=True)
class Cosine:
    """Cosine of embeddings of `dim` dimensions; an item that shows several modalities is their normalised sum."""

    dim: int
    name: ClassVar[str] = "cosine"
    symmetric: ClassVar[bool] = True

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Float[Tensor, "n d"]:
        """The embeddings."""
        return embeddings

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of both sides."""
        return queries, candidates

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Cosine of the query with the mean of what an item shows."""
        return queries @ normalize(items.sum(dim=1), dim=1).T

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """The normalised sum of what an item shows."""
        return normalize(items.double().sum(dim=1), dim=1)

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """The embeddings."""
        return queries.double()

    def to(self, device: torch.device | str) -> Self:
        """Itself: there is nothing to move."""
        return self

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The dimension."""
        return {"kind": self.name, "dim": self.dim}, {}

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        return cls(int(description["dim"]))


@similarity_kind
@dataclass(frozen=True)
class LikelihoodRatio:
    """log p(x, y) - log p(x) - log p(y) under PPCA of the features: how much likelier x and y belong to one item than to two (nats).

    Known as PLDA scoring in speaker recognition (Prince and Elder, ICCV 2007). Rows are compared by their information vectors (`LatentMaps`),
    float64; unlike a cosine the ratio knows how sure each modality is, and in which directions. `feature_maps`, one per modality, come before
    `latent`.
    """

    latent: LatentMaps
    feature_maps: tuple[FeatureMap, ...]
    name: ClassVar[str] = "likelihood-ratio"
    symmetric: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        """The dimension q of the latent vector."""
        return self.latent.latent_dim

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Float[Tensor, "n q"]:
        """The information vectors of the features."""
        (place,) = self._places(modality)
        return self.latent.information_vector(place, self.feature_maps[place](features))

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """[V h, 1] and [g, the term of the candidate], V being the posterior covariance given both modalities."""
        a, b = self._places(query, gallery)
        both = self.latent.covariance(a, b).to(queries.device)
        own = self.latent.item_term(a, [b], candidates).unsqueeze(1)
        return torch.cat([queries @ both, torch.ones_like(queries[:, :1])], dim=1), torch.cat([candidates, own], dim=1)

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """The ratio for all that an item shows: its information vectors add up, so that gaps need no filling."""
        asking, *columns = self._places(query, *shown)
        scores = queries.new_empty(len(queries), len(items))
        patterns, which = torch.unique(mask, dim=0, return_inverse=True)
        for index, pattern in enumerate(patterns.tolist()):
            rows = (which == index).nonzero().squeeze(1)
            places = [place for place, seen in zip(columns, pattern, strict=True) if seen]
            scores[:, rows] = self.latent.log_density_ratio(asking, places, queries, items[rows].sum(dim=1))
        return scores

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """V g and the term of the item for every query modality a, and the number of its pattern P as a one among zeros.

        The ratio of a query of modality a and an item of pattern P is h' V g + c_P(h) + o_a(g) (`LatentMaps.log_density_ratio`), with h and g
        their information vectors and V the posterior covariance given a and P.
        """
        modalities, q = self.latent.modalities, self.dim
        vectors = items.new_zeros(len(mask), len(modalities) * (q + 1) + len(patterns), dtype=torch.float64)
        for number, pattern in enumerate(patterns):
            kind = torch.tensor([name in pattern for name in shown], device=mask.device)
            rows = (mask == kind).all(dim=1).nonzero().squeeze(1)
            total, places = items[rows].double().sum(dim=1), self._places(*pattern)
            for asking in range(len(modalities)):
                both = self.latent.covariance(asking, *places).to(total.device)
                vectors[rows, asking * q : (asking + 1) * q] = total @ both
                vectors[rows, len(modalities) * q + asking] = self.latent.item_term(asking, places, total)
            vectors[rows, len(modalities) * (q + 1) + number] = 1.0
        return vectors

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """h and a one at the places of the query's modality, and its term c_P(h) for every pattern."""
        modalities, q, asked = self.latent.modalities, self.dim, queries.double()
        (asking,) = self._places(query)
        vectors = asked.new_zeros(len(asked), len(modalities) * (q + 1) + len(patterns))
        vectors[:, asking * q : (asking + 1) * q] = asked
        vectors[:, len(modalities) * q + asking] = 1.0
        for number, pattern in enumerate(patterns):
            own = self.latent.query_term(asking, self._places(*pattern), asked)
            vectors[:, len(modalities) * (q + 1) + number] = own
        return vectors

    def _places(self, *names: str) -> list[int]:
        return [known(name, self.latent.modalities, "the PPCA of the features has no modality") for name in names]

    def to(self, device: torch.device | str) -> Self:
        """The same similarity on another device; the maps of the latent model follow their input by themselves."""
        return type(self)(self.latent, tuple(one.to(device) for one in self.feature_maps))

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The latent model and the feature maps before it."""
        tensors = {f"{prefix}latent/{key}": torch.from_numpy(value) for key, value in self.latent.state().items()}
        maps = []
        for number, one in enumerate(self.feature_maps):
            description, found = feature_map.described(one, f"{prefix}maps/{number}/")
            maps.append(description)
            tensors |= found
        return {"kind": self.name, "modalities": list(self.latent.modalities), "feature_maps": maps}, tensors

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        start = f"{prefix}latent/"
        state = {key.removeprefix(start): value.numpy() for key, value in tensors.items() if key.startswith(start)}
        maps = (feature_map.read(one, tensors, f"{prefix}maps/{j}/") for j, one in enumerate(description["feature_maps"]))
        return cls(LatentMaps.from_state(state, description["modalities"]), tuple(maps))


@similarity_kind
@dataclass(frozen=True)
class Sum:
    """Weighted sum of any number of similarities, as a product of experts: each part is (similarity, weight).

    The vectors of the parts stand side by side, in float64. Raises CalmrlError for no parts and for weights that are not finite.
    """

    parts: tuple[tuple[Similarity, float], ...]
    name: ClassVar[str] = "sum"
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.parts]
        if not weights or not all(abs(weight) < float("inf") for weight in weights):
            raise CalmrlError(f"a sum of similarities needs parts with finite weights, got {weights}")

    @property
    def dim(self) -> int:
        """The dimensions of all parts together."""
        return sum(part.dim for part, _ in self.parts)

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Tensor:
        """The vectors of the parts."""
        return torch.cat([part.vectors(modality, features, embeddings).double() for part, _ in self.parts], dim=-1)

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The pair vectors of the parts, those of the queries times the weights."""
        pairs = [
            part.pair_vectors(query, gallery, ours, theirs)
            for (part, _), ours, theirs in zip(self.parts, self._split(queries), self._split(candidates), strict=True)
        ]
        left = [weight * ours for (_, weight), (ours, _) in zip(self.parts, pairs, strict=True)]
        return torch.cat(left, dim=1), torch.cat([theirs for _, theirs in pairs], dim=1)

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum of the parts' scores."""
        total: Tensor | None = None
        for (part, weight), ours, theirs in zip(self.parts, self._split(queries), self._split(items), strict=True):
            scores = weight * part.set_scores(query, shown, ours, theirs, mask)
            total = scores if total is None else total + scores
        assert total is not None
        return total

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """The item vectors of the parts."""
        made = (
            part.item_vectors(shown, patterns, theirs, mask)
            for (part, _), theirs in zip(self.parts, self._split(items), strict=True)
        )
        return torch.cat(list(made), dim=1)

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """The query vectors of the parts, times their weights."""
        made = (
            weight * part.query_vectors(shown, patterns, query, ours)
            for (part, weight), ours in zip(self.parts, self._split(queries), strict=True)
        )
        return torch.cat(list(made), dim=1)

    def to(self, device: torch.device | str) -> Self:
        """The same sum on another device."""
        return type(self)(tuple((part.to(device), weight) for part, weight in self.parts))

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The parts and their weights."""
        parts: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, (part, weight) in enumerate(self.parts):
            description, found = part.described(f"{prefix}{number}/")
            parts.append({**description, "weight": weight})
            tensors |= found
        return {"kind": self.name, "parts": parts}, tensors

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        parts = enumerate(description["parts"])
        return cls(tuple((read(part, tensors, f"{prefix}{number}/"), float(part["weight"])) for number, part in parts))

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        return vectors.split([part.dim for part, _ in self.parts], dim=-1)


def weighted_parts(similarity: Similarity) -> list[tuple[str, float]]:
    """The name and the weight of each part of a sum; of any other similarity its own name, and 1.

    A part whose weight depends on the pair of modalities (`PairWeighted`) is named by what it weights.
    """
    parts = similarity.parts if isinstance(similarity, Sum) else ((similarity, 1.0),)
    return [(f"{part.part.name}, weighted by pair" if hasattr(part, "part") else part.name, weight) for part, weight in parts]


def read(description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> Similarity:
    """The similarity that `described` described. Raises CalmrlError for a kind that is not known here, KeyError for a tensor that is missing."""
    kind = description["kind"]
    if kind not in _KINDS:
        raise CalmrlError(f"unknown similarity '{kind}'", hint=f"known: {', '.join(_KINDS)}")
    made: Similarity = _KINDS[kind].read(description, tensors, prefix)
    return made
