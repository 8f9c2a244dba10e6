"""Check of an imputer on held-out items: observed entries are hidden and imputed, and predicted errors compared with the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from calmrl_lab.completion.fitted_store import Prepared, predicted_errors, predicts
from calmrl_lab.completion.reliability import Reliability, reliability
from calmrl_lab.data.table import sampled
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.console import listed
from calmrl_lab.runtime.progress import tracked

# Patterns tried on every held-out item, of which there are at most so many.
_DRAWINGS = 5
_CHECKED = 20_000


@dataclass(frozen=True)
class Check:
    """Predicted and real squared errors, both over the error of mean imputation: in bins of prediction, and a row per modality."""

    items: int
    reliability: Reliability
    modalities: list[dict[str, Any]]

    def payload(self) -> dict[str, Any]:
        """As a JSON document."""
        # JSON has no NaN: a bin of one entry has no standard error.
        columns = ([None if np.isnan(v) else v for v in column.tolist()] for column in vars(self.reliability).values())
        bins = zip(*columns, strict=True)
        return {
            "items": self.items,
            "real_over_predicted": self.reliability.ratio,
            "miscalibration": self.reliability.miscalibration,
            "bins": [dict(zip(("count", "predicted", "real", "standard_error"), row, strict=True)) for row in bins],
            "modalities": self.modalities,
        }


def check_on_held_out(ready: Prepared, seed: int = 0) -> Check:
    """Hide, from items that were not fitted on, what other items of the store lack, and compare predicted with real errors.

    Every held-out item (of more than 20,000 a sample) is shown under gaps of the store drawn at random (five times, each once), so that
    patterns come about as often as they do in the store; an item that such a pattern leaves as it is, or leaves with nothing, sits out. Raises CalmrlError if the
    imputer predicts no error, the store has no gaps, or no held-out item has anything to hide.
    """
    imputer, mask = ready.imputer, ready.mask
    if not predicts(imputer):
        raise CalmrlError(
            f"imputer '{imputer.name}' predicts no error, so there is no prediction to check", hint="use --method ppca-auto"
        )
    gaps = mask[~mask.all(axis=1) & mask.any(axis=1)]
    if not len(gaps):
        raise CalmrlError(
            f"no item of store '{ready.store.path}' shows some of {listed(ready.names)} and lacks others, so there is nothing to check "
            "predictions on",
            hint="calmrl-lab store info shows what is missing in a store",
        )
    held_out = np.flatnonzero(~ready.fitted & mask.any(axis=1))
    if len(held_out) > _CHECKED:
        held_out = held_out[sampled(len(held_out), _CHECKED)]
    drawn = _shown(mask[held_out], gaps, np.random.default_rng(seed))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    used: set[int] = set()
    for shown, ask in tracked(drawn, "checking on held-out items", unit="drawings"):
        rows = held_out[ask]
        used.update(rows.tolist())
        parts += _errors(ready, rows, shown[ask])
    if not parts:
        raise CalmrlError(
            f"store '{ready.store.path}' has nothing to check predictions on: that takes items outside the fitted split that show "
            "more than some other item does",
            hint="fit on a part of the items only (--fit-split train)",
        )
    index, predicted, real = (np.concatenate(column) for column in zip(*parts, strict=True))
    modalities = [
        {
            "modality": name,
            "entries": int((index == j).sum()),
            "predicted": float(predicted[index == j].mean()),
            "real": float(real[index == j].mean()),
        }
        for j, name in enumerate(ready.names)
        if (index == j).any()
    ]
    return Check(len(used), reliability(predicted, real), modalities)


def _shown(
    mask: Bool[np.ndarray, "h k"], gaps: Bool[np.ndarray, "g k"], generator: np.random.Generator
) -> list[tuple[Bool[np.ndarray, "h k"], Bool[np.ndarray, " h"]]]:
    """(what the items show, which of them hide something) under a random one of `gaps` each, `_DRAWINGS` times."""
    result, seen = [], np.zeros((len(mask), 0), dtype=np.int64)
    for _ in range(_DRAWINGS):
        shown = mask & gaps[generator.integers(len(gaps), size=len(mask))]
        # The same item under the same gaps is the same evidence.
        code = shown @ (1 << np.arange(mask.shape[1], dtype=np.int64))
        ask = shown.any(axis=1) & (shown != mask).any(axis=1) & (seen != code[:, None]).all(axis=1)
        seen = np.column_stack([seen, code])
        if ask.any():
            result.append((shown, ask))
    return result


def _errors(
    ready: Prepared, rows: np.ndarray, shown: Bool[np.ndarray, "h k"]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(modality, predicted, real) of every entry that is hidden though the item has it, over the modality's variance."""
    truth = ready.rows.of(rows)
    filled = [np.asarray(values) for values in ready.imputer.impute(truth, shown)]
    predicted = predicted_errors(ready.imputer, truth, shown) / ready.variances
    parts = []
    for j, variance in enumerate(ready.variances):
        hidden = ready.mask[rows, j] & ~shown[:, j]
        squared = np.square(filled[j][hidden] - truth[j][hidden], dtype=np.float64).sum(axis=1)
        parts.append((np.full(int(hidden.sum()), j), predicted[hidden, j], squared / variance))
    return parts
