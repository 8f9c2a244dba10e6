"""The figure of the reliability of imputers: predicted against real error on held-out items, in bins of predicted error."""

from __future__ import annotations

from collections.abc import Mapping

from calmrl_lab.completion.reliability import Reliability
from calmrl_lab.reporting.output.axes import legend
from calmrl_lab.reporting.output.drawing import INK, Drawing, Figure, canvas
from calmrl_lab.reporting.output.palette import imputer_ink


def reliability_figure(found: Mapping[str, Reliability], name: str = "predicted_error") -> Figure:
    """Predicted against real squared error of imputers by name, both over that of mean imputation; bars: 95 % of the mean real
    error of a bin."""
    top = 1.08 * float(max(1.0, *(max(one.predicted.max(), one.real.max()) for one in found.values())))

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 3.4)
        axis, drawing = axes[0, 0], Drawing(made)
        axis.plot([0, top], [0, top], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        for imputer, one in found.items():
            ink, label = imputer_ink(imputer), imputer
            for count, predicted, real, deviation in zip(one.count, one.predicted, one.real, one.standard_error, strict=True):
                reach = 0.0 if deviation != deviation else 1.96 * deviation  # NaN where the bin has one entry
                axis.plot([predicted, predicted], [real - reach, real + reach], color=ink.light, linewidth=1.5)
                (mark,) = axis.plot([predicted], [real], ink.marker, color=ink.light, markersize=6, label=label)
                drawing.label(mark, f"{imputer}: predicted {predicted:.3f}, real {real:.3f}, {count:.0f} entries")
                label = "_"
        axis.set_xlim(0, top)
        axis.set_ylim(0, top)
        axis.set_xlabel("predicted error (1: no better than the mean)")
        axis.set_ylabel("real error")
        legend(drawing, axis, narrow, 6)
        return drawing

    entries = max(one.count.sum() for one in found.values())
    caption = (
        f"Squared error that {' and '.join(found)} predicted for held-out entries and the one made, both over that of mean imputation, "
        f"in bins of prediction; {entries:.0f} entries, bars: 95 % interval. On the dotted line a "
        "prediction is right; above it, the real error is larger than predicted."
    )
    basis = f"n = {entries:.0f} held-out entries; bars: 95 % interval"
    return Figure(name, "Predicted and real errors of imputation", caption, caption, draw, basis)
