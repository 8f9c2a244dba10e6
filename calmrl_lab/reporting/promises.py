"""The figure of one imputer's promises: predicted against real error on held-out items, in bins of prediction."""

from __future__ import annotations

from calmrl_lab.imputers.reliability import Reliability
from calmrl_lab.reporting.drawing import INK, Drawing, Figure, canvas
from calmrl_lab.reporting.palette import imputer_ink


def promises(found: Reliability, imputer: str) -> Figure:
    """Predicted against real squared error, both over that of mean imputation; bars: 95 % of the mean real error of a bin."""
    top = 1.08 * float(max(found.predicted.max(), found.real.max(), 1.0))

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 3.4)
        axis, drawing, ink = axes[0, 0], Drawing(made), imputer_ink(imputer)
        axis.plot([0, top], [0, top], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        for count, predicted, real, deviation in zip(
            found.count, found.predicted, found.real, found.standard_error, strict=True
        ):
            reach = 0.0 if deviation != deviation else 1.96 * deviation  # NaN where the bin has one entry
            axis.plot([predicted, predicted], [real - reach, real + reach], color=ink.light, linewidth=1.5)
            (mark,) = axis.plot([predicted], [real], ink.marker, color=ink.light, markersize=6)
            drawing.label(mark, f"predicted {predicted:.3f}, real {real:.3f}, {count:.0f} entries")
        axis.set_xlim(0, top)
        axis.set_ylim(0, top)
        axis.set_xlabel("predicted error (1: no better than the mean)")
        axis.set_ylabel("real error")
        return drawing

    caption = (
        f"Squared error that {imputer} predicted for held-out entries and the one it made, both over that of mean imputation, in bins "
        f"of prediction; {found.count.sum():.0f} entries, bars: 95 % interval. On the dotted line its promise can be trusted; above "
        "it, it is too sure of itself."
    )
    return Figure("predicted_error", "Does the imputer know how wrong it is?", caption, caption, draw)
