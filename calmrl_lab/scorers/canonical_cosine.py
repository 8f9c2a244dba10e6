"""Mean cosine of canonical variates of the query with those of what an item shows."""

from __future__ import annotations

from typing import ClassVar

from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.likelihood_ratio import BySimilarity


@scorers.register("canonical-cosine")
class CanonicalCosineScorer(BySimilarity):
    """The mean, over what an item shows, of the cosine of canonical variates, for runs that compare by it (--method cca).

    With one modality shown it is the score of `evaluate` of such a run.
    """

    name = "canonical-cosine"
    compares: ClassVar[str] = "canonical-cosine"
