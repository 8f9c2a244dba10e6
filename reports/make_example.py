"""Makes reports/example, and the table of the demo in README.md, from what `make demo` wrote into reports/demo: `make example`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLE, README = HERE / "example", HERE.parent / "README.md"
# What is kept: a page that shows everything, the figures that pages of the manual show, the tables in all forms.
KEPT = (
    "index.html",
    "figures/overview.svg",
    "figures/differences.svg",
    "figures/fig[345]_*.svg",
    "tables/summary.*",
    "tables/recall.*",
    "tables/imputation_mse.*",
)
MARKS = ("<!-- table of the demo: begin -->", "<!-- table of the demo: end -->")


def copy(demo: Path) -> None:
    """Replace the example by what is kept of the report in `demo`."""
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(demo.glob(pattern)):
            target = EXAMPLE / path.relative_to(demo)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def table() -> str:
    """The rows of the example's summary that the README shows."""
    with (EXAMPLE / "tables" / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| method | Recall@1, % | against observed only | against CLIP |", "|---|---|---|---|"]
    for row in rows:
        recall = f"{float(row['recall_at_1']):.1f} [{float(row['low_1']):.1f}, {float(row['high_1']):.1f}]"
        lines.append(f"| {row['method']} | {recall} | {_difference(row, 'fair')} | {_difference(row, 'clip')} |")
    return "\n".join(lines)


def _difference(row: dict[str, str], reference: str) -> str:
    if not row[f"delta_{reference}"]:
        return ""
    value, low, high = (float(row[f"delta_{reference}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def with_table(readme: str) -> str:
    """The README with its table made anew."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}"


if __name__ == "__main__":
    copy(HERE / "demo")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written to {EXAMPLE} and {README}")
