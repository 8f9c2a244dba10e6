"""Risk control: which items are calibrated, so that calibration harms at most the share of them that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.anchors.bayes import CONFIDENCE, calibration_gain, least_items, risk_controlling_threshold
from calmrl_lab.data.patterns import Patterns
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.linalg.spectrum import spectrum

# Draws of the missing embeddings per item; the gate ranks items by their predicted gain, and 32 rank them as 128 do.
_SAMPLES = 32


class Gate:
    """Leaves an item uncalibrated unless its predicted gain exceeds a threshold, which held-out complete items set.

    The gain of an item is how much closer (in cos^2) the calibrated anchor is expected to be to the true one than the anchor of
    what it shows. `level` bounds the harm rate: the share of items with gaps that are calibrated and end up further from their
    true anchor. It holds for new items whose gaps come in the shares of training, with probability 0.9 over the held-out items
    (`risk_controlling_threshold`), as far as both are exchangeable. The margin that this takes also covers that model selection has seen the
    held-out items.
    """

    def __init__(self, level: float) -> None:
        self.level = level
        self.threshold = float("inf")

    @staticmethod
    def refuse_unless_possible(held_out: Bool[Tensor, "h k"], level: float, store: str) -> None:
        """CalmrlError unless enough held-out items are complete to guarantee a harm rate of `level`."""
        complete, wanted = int(held_out.all(dim=1).sum()), least_items(level)
        if complete < wanted:
            raise CalmrlError(
                f"--risk-control estimates the harm on complete validation items, and store '{store}' has {complete} "
                f"(at least {wanted} are needed to guarantee a harm rate of {level:g} with confidence {CONFIDENCE:g})",
                hint="leave --risk-control out, align fewer --modalities, re-draw the split with --set split_seed=0, or raise risk_level",
            )

    def set_on(
        self,
        imputer: Imputer,
        embeddings: Sequence[Float[Tensor, "h d"]],
        held_out: Bool[Tensor, "h k"],
        mask: Bool[Tensor, "n k"],
    ) -> dict[str, float]:
        """Choose the threshold on the complete ones of the held-out items, shown under every pattern of `mask`.

        `imputer` must not have been fitted on them. Returns the threshold and the share harmed at it, for the log.
        """
        rows = torch.nonzero(held_out.all(dim=1)).squeeze(1)
        found = Patterns.of(mask)
        patterns, counts = found.shown, found.counts
        gaps = ~patterns.all(dim=1) & patterns.any(dim=1)
        patterns, shares = patterns[gaps], (counts[gaps] / counts[gaps].sum()).cpu().numpy()
        if not len(patterns):
            self.threshold = 0.0
            return {}
        truth = torch.stack([part[rows] for part in embeddings], dim=1)
        predicted, realised = np.empty((2, len(rows), len(patterns)))
        for column, pattern in enumerate(patterns):
            shown = pattern.expand(len(rows), -1)
            filled = _filled(imputer, truth, shown)
            predicted[:, column] = self.gain(imputer, truth, shown, filled).cpu().numpy()
            realised[:, column] = realised_calibration_gain(truth, shown, filled).cpu().numpy()
        self.threshold = risk_controlling_threshold(predicted, realised, self.level, shares)
        harmed = ((predicted > self.threshold) & (realised < 0)) @ shares
        return {"gate_threshold": self.threshold, "gate_held_out_harm": float(harmed.mean())}

    @staticmethod
    def gain(imputer: Imputer, embeddings: Tensor, mask: Tensor, filled: Tensor) -> Float[Tensor, " n"]:
        """Predicted gain of every item; what an item gets does not depend on the others."""
        return calibration_gain(imputer, embeddings, mask, filled, torch.Generator().manual_seed(0), _SAMPLES)

    def opens(
        self, imputer: Imputer, embeddings: Float[Tensor, "n k d"], mask: Bool[Tensor, "n k"], filled: Float[Tensor, "n k d"]
    ) -> Bool[Tensor, " n"]:
        """Which items may be calibrated. Those that miss nothing, and those that show nothing, have nothing to lose."""
        return (self.gain(imputer, embeddings, mask, filled) > self.threshold) | mask.all(dim=1) | ~mask.any(dim=1)

    def state(self) -> dict[str, np.ndarray]:
        return {"threshold": np.array([self.threshold])}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.threshold = float(np.asarray(state["threshold"])[0])


def _filled(imputer: Imputer, truth: Float[Tensor, "n k d"], mask: Bool[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
    return torch.stack([torch.as_tensor(part) for part in imputer.impute(list(truth.unbind(1)), mask)], dim=1)


def realised_calibration_gain(
    truth: Float[Tensor, "n k d"], mask: Bool[Tensor, "n k"], filled: Float[Tensor, "n k d"]
) -> Float[Tensor, " n"]:
    """cos^2 with the true anchor, calibrated minus observed anchor: negative where calibration did harm. Float64."""
    full = torch.ones_like(mask)
    target = spectrum(truth.double(), full).anchor
    before = (spectrum(truth.double(), mask).anchor * target).sum(dim=1).square()
    after = (spectrum(filled.double(), full).anchor * target).sum(dim=1).square()
    return after - before


def gated_columns(
    imputer: Imputer, threshold: float, report: Mapping[str, Tensor], truth: Tensor, mask: Tensor, filled: Tensor
) -> dict[str, Tensor]:
    """`anchor_report` of complete items under a gate: where it stays shut, the calibrated shift is the observed one.

    Adds predicted_gain, calibrated (whether the gate opened) and harmed (calibrated, and the shift grew), a value per item.
    """
    gain = Gate.gain(imputer, truth, mask, filled)
    calibrated = (gain > threshold) & mask.any(dim=1)
    harmed = calibrated & (report["shift_calibrated"] > report["shift_observed"])
    left = torch.where(calibrated, report["shift_calibrated"], report["shift_observed"])
    return {**report, "shift_calibrated": left, "predicted_gain": gain, "calibrated": calibrated, "harmed": harmed}


def achieved(anchors: Any, patterns: Mapping[str, int], level: float) -> dict[str, Any]:
    """What a gate did on scored items: counts, and the harm rate with patterns in the shares of training (`patterns`: name ->
    items)."""
    rates = anchors.groupby("pattern")["harmed"].mean()
    shares = np.array([patterns[pattern] for pattern in rates.index], dtype=np.float64)
    return {
        "level": level,
        "scored": len(anchors),
        "left_uncalibrated": int((~anchors["calibrated"]).sum()),
        "harmed": int(anchors["harmed"].sum()),
        "harm_rate": float(rates.to_numpy() @ shares / shares.sum()),
    }
