"""Names of scorers: whether one uses a single modality, and which similarity it compares by."""

from __future__ import annotations


def is_single(scorer: str) -> bool:
    """Whether `scorer` looks at one modality of the items only, as cosine:vision does."""
    return ":" in scorer


def family(scorer: str) -> str:
    """The similarity that `scorer` compares by, which is also what single modalities are scored by beside it: cosine, likelihood-ratio,
    sum or canonical-cosine.

    Raises CalmrlError for an unknown scorer.
    """
    from calmrl_lab.scorers import scorers

    return str(scorers.get(scorer.partition(":")[0]).compares)
