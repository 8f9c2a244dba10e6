"""What the name of a scorer tells: whether it looks at one modality only, and what it compares."""

from __future__ import annotations

# Scorers that take evidence about a latent vector; all others compare embeddings.
OF_EVIDENCE = ("overlap", "both")


def is_single(scorer: str) -> bool:
    """Whether `scorer` looks at one modality of the items only, as cosine:vision does."""
    return ":" in scorer


def family(scorer: str) -> str:
    """What single modalities are scored by beside `scorer`: overlap, both, or cosine."""
    name = scorer.partition(":")[0]
    return name if name in OF_EVIDENCE else "cosine"
