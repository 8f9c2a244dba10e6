"""The overlap of posteriors, between one modality and whatever an item shows; alone, or beside the cosine of trained heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from calmrl_lab.data.patterns import Patterns
from calmrl_lab.errors import CalmrlError
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.registry import nearest
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer
from calmrl_lab.scorers.centroid import Centroid


@scorers.register("overlap")
class Overlap(Scorer):
    """Overlap of the posteriors of query and item under the PPCA that heads start from (runs of --init ppca): a log density ratio.

    log p(query, shown) - log p(query) - log p(shown) (nats). What an item shows adds up as evidence, so gaps need no filling; with one
    modality shown it is the score of `evaluate --score overlap`. Vectors are evidence (`LatentMaps.evidence`), with embeddings behind it.
    `maps` is that PPCA; `modality` looks at one modality of the items only.
    """

    name = "overlap"

    def __init__(
        self, query: str, modalities: Sequence[str], maps: LatentMaps | None = None, modality: str | None = None
    ) -> None:
        super().__init__(query, modalities)
        if maps is None:
            raise CalmrlError(
                f"scorer '{self.name}' needs the PPCA that heads start from", hint="calmrl-lab curves, for a run of --init ppca"
            )
        for name in (query, *self.modalities):
            if name not in maps.modalities:
                raise CalmrlError(
                    f"scorer '{self.name}': the PPCA has no modality '{name}'", hint=f"it has: {', '.join(maps.modalities)}"
                )
        if modality is not None and modality not in self.modalities:
            raise CalmrlError(
                f"scorer '{self.name}': items have no modality '{modality}'{nearest(modality, list(self.modalities))}",
                hint=f"they have: {', '.join(self.modalities)}",
            )
        self.maps = maps
        self._columns = [j for j, name in enumerate(self.modalities) if modality in (None, name)]

    def serves(self, mask: Tensor) -> Tensor:
        return mask[:, self._columns].any(dim=1)

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        q = self.maps.latent_dim
        query = self.maps.modalities.index(self.query)
        places_of = [self.maps.modalities.index(self.modalities[j]) for j in self._columns]
        asked, shown = queries[:, :q], items[:, self._columns, :q]
        scores = asked.new_empty(len(queries), len(items))
        for pattern in Patterns.of(mask[:, self._columns]):
            places = [places_of[j] for j in pattern.observed]
            scores[:, pattern.rows] = self.maps.log_density_ratio(query, places, asked, shown[pattern.rows].sum(dim=1))
        return scores


@scorers.register("both")
class OverlapAndCosine(Overlap):
    """The overlap of posteriors plus `weight` times the cosine with the mean of what the item shows (runs of --score both).

    With one modality shown it is the score of `evaluate --score both`; `weight` is the one that validation chose.
    """

    name = "both"

    def __init__(
        self,
        query: str,
        modalities: Sequence[str],
        maps: LatentMaps | None = None,
        weight: float | None = None,
        modality: str | None = None,
    ) -> None:
        super().__init__(query, modalities, maps, modality)
        if weight is None:
            raise CalmrlError(
                "scorer 'both' needs the weight of the cosine", hint="score a run that was trained with --score both"
            )
        self.weight = float(weight)
        self._centroid = Centroid(query, [self.modalities[j] for j in self._columns])

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        q = self.maps.latent_dim
        joint = self._centroid.vectors(items[:, self._columns, q:], mask[:, self._columns])
        return super()._score(queries, items, mask) + self.weight * (queries[:, q:] @ joint.T)
