"""The words of a report that are no everyday words, each with one definition where it first appears: below the headline."""

from __future__ import annotations

from calmrl_lab.reporting.page.context import Findings

_ORACLE = "the same method trained with nothing hidden: how much could be won back at most"
_ANCHOR = "the direction on which the modalities of an item agree: the leading left singular vector of the matrix of its embeddings, with its sign fixed"
_CALIBRATED = (
    "a model fitted to what is observed makes up for what is missing: missing embeddings are imputed before the anchor is taken, or the model itself "
    "gives the heads"
)


def terms(found: Findings) -> list[tuple[str, str]]:
    """(word, definition) of the words that this report uses."""
    parts, used = found.compared.roles, []
    if parts.oracle is not None:
        used.append(("Oracle", _ORACLE))
    if parts.calibrated or found.shifts is not None:
        used.append(("Calibrated", _CALIBRATED))
    if parts.calibrated or found.shifts is not None or "missing_curves" in found.tables:
        used.append(("Anchor", _ANCHOR))
    return used
