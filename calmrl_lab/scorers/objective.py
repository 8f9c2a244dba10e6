"""The score that the objective of a run trains, for objectives that have one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer


@scorers.register("objective")
class TrainedScore(Scorer):
    """What the run's objective compares in training: CoMM's fused query and item, ConFu's fused pairs, Gated Symile's gated product.

    `objective` is the trained objective of a run, with `item_scores`. A modality of the training that `modalities` leaves out counts as missing.
    """

    name = "objective"
    needs: ClassVar[tuple[str, ...]] = ("objective",)

    def __init__(self, query: str, modalities: Sequence[str], objective: Any = None) -> None:
        super().__init__(query, modalities)
        if not hasattr(objective, "item_scores"):
            raise CalmrlError(
                "scorer 'objective' needs an objective with a score of its own",
                hint="score a run that was trained with --objective comm, confu or gated-symile",
            )
        names = list(objective.modalities)
        self._query = known(query, names, "scorer 'objective': the run has no modality")
        self._places = [known(name, names, "scorer 'objective': the run has no modality") for name in self.modalities]
        self._objective = objective

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        count = len(self._objective.modalities)
        wide, shown = items.new_zeros(len(items), count, items.shape[2]), mask.new_zeros(len(items), count)
        wide[:, self._places], shown[:, self._places] = items, mask
        module = self._objective.to(items.device)
        scores: Tensor = module.item_scores(self._query, queries, wide, shown)
        return scores
