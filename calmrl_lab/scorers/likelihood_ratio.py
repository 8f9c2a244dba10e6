"""Scorers that compare as a model's own similarity does: the likelihood ratio under PPCA of the features, alone or in a sum with the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer


class BySimilarity(Scorer):
    """Similarity of the query with all that an item shows, or with one `modality` of it (`likelihood-ratio:vision`).

    `similarity` is that of a model (`AlignmentModel.similarity`); queries and items are the vectors that it compares
    (`AlignmentModel.represent`), not embeddings.
    """

    needs: ClassVar[tuple[str, ...]] = ("similarity",)
    conditions: ClassVar[bool] = True

    def __init__(self, query: str, modalities: Sequence[str], similarity: Any = None, modality: str | None = None) -> None:
        super().__init__(query, modalities)
        if similarity is None or similarity.name != self.compares:
            raise CalmrlError(
                f"scorer '{self.name}' needs a model that can compare by similarity '{self.compares}'",
                hint=f"score a run that was trained with --similarity {self.compares}",
            )
        if modality is not None:
            known(modality, self.modalities, f"scorer '{self.name}': items have no modality")
        self.similarity = similarity
        self._columns = [j for j, name in enumerate(self.modalities) if modality in (None, name)]

    def serves(self, mask: Tensor) -> Tensor:
        return mask[:, self._columns].any(dim=1)

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        shown, chosen = [self.modalities[j] for j in self._columns], self._columns
        scores: Tensor = self.similarity.set_scores(self.query, shown, queries, items[:, chosen], mask[:, chosen])
        return scores


@scorers.register("likelihood-ratio")
class LikelihoodRatioScorer(BySimilarity):
    """log p(query, shown) - log p(query) - log p(shown) under PPCA of the features (nats), for runs that start by PPCA.

    `imputer-likelihood` is the same quantity under the PPCA that imputes embeddings. What an item shows adds up as information about one latent vector, so gaps need no filling. With one modality shown it is the score of
    `evaluate --similarity likelihood-ratio`.
    """

    name = "likelihood-ratio"
    compares: ClassVar[str] = "likelihood-ratio"


@scorers.register("sum")
class SumScorer(BySimilarity):
    """The weighted sum of similarities that a run was trained for: its likelihood ratio plus the cosine with the mean of what an item shows.

    With one modality shown it is the score of `evaluate --similarity sum`.
    """

    name = "sum"
    compares: ClassVar[str] = "sum"
