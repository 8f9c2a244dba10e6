"""Reports: run directories -> tables (CSV, Markdown, LaTeX), figures (SVG, PDF) and one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calmrl_lab.reporting.report import Report, write_report

__all__ = ["Report", "write_report"]


def __getattr__(name: str) -> Any:
    # Late: pandas and matplotlib are not needed for --help.
    if name in __all__:
        from calmrl_lab.reporting import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
