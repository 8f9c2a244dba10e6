"""Cosine of the query with the vector that a trained fusion makes of an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import VectorScorer


@scorers.register("fused")
class Fused(VectorScorer):
    """Cosine of the query with the fused vector of what the item shows (VAST): a linear map that was trained for exactly that combination.

    `objective` is the trained objective of a run (`AlignmentModel.trained_objective`) that fuses; it was trained for queries of one modality and serves no
    other. A single modality is taken as it is. A modality of the training that `modalities` leaves out counts as missing.
    """

    name = "fused"
    needs: ClassVar[tuple[str, ...]] = ("objective",)

    def __init__(self, query: str, modalities: Sequence[str], objective: Any = None) -> None:
        super().__init__(query, modalities)
        if not hasattr(objective, "fused"):
            raise CalmrlError("scorer 'fused' needs fusion heads", hint="score a run that was trained with --objective vast")
        asking = objective.modalities[objective.query]
        others = [objective.modalities[index] for index in objective.others]
        if query and query != asking:
            raise CalmrlError(
                f"scorer 'fused': the fusion heads of this run were trained for queries of '{asking}', not of '{query}'"
            )
        for name in self.modalities:
            known(name, others, "scorer 'fused': the fusion heads of this run take no modality")
        self._objective = objective
        self._places = [others.index(name) for name in self.modalities]
        self._count = len(others)

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        answers = items.new_zeros(len(items), self._count, items.shape[2])
        shown = mask.new_zeros(len(items), self._count)
        answers[:, self._places], shown[:, self._places] = items, mask
        fused: Tensor = self._objective.to(items.device).fused(answers, shown).detach()
        return fused
