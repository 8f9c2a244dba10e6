"""How time and memory of every stage grow with the number of items: made-up features, four modalities of 256 float16 numbers.

    calmrl-lab bench scale                        10,000 and 100,000 items
    calmrl-lab bench scale --quick                3,000 and 10,000
    calmrl-lab bench scale --items 1000000        others
    calmrl-lab bench scale --page docs/performance.md   put the table where the page wants it

Every stage is a process of its own on one thread: the real command. Its time is processor time (user and system), which other work on the
machine changes little; its peak is the largest resident memory. Slopes are between the smallest and the largest number of items: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _made_features import write_features
from _marks import put
from _script import run
from rich.table import Table

from calmrl_lab.errors import WorkFailedError
from calmrl_lab.runtime import console, threads

# The command of each stage, in the order in which they need each other.
STAGES = {
    "train-heads, recommended, 1 epoch": "train-heads --store {store} --epochs 1 --run {folder}/recommended",
    "train-heads --impute ppca, 1 epoch": "train-heads --store {store} --impute ppca --epochs 1 --run {folder}/ppca",
    "evaluate, one direction": "evaluate --run {folder}/ppca --direction m0:m1",
    "impute, ppca": "impute --store {store} --out {folder}/filled.zarr --method ppca",
    "index, ivf": "index --run {folder}/ppca --out {folder}/index --index-type ivf",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3,000 and 10,000 items")
    parser.add_argument("--items", type=int, nargs="+", help="numbers of items")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--page", type=Path, help="Markdown page with marks 'scale: begin' and 'scale: end'")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    numbers = sorted(options.items or ([3_000, 10_000] if options.quick else [10_000, 100_000]))
    rows = []
    for items in numbers:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="calmrl-scale-") as folder:
            rows += stages(Path(folder), items)
        # After every size, since the largest may take an hour.
        if options.page is not None:
            put(options.page, "scale", markdown(rows))
    console.emit({"rows": rows, "slopes": slopes(rows)}, options.json, lambda: show(rows))


def stages(folder: Path, items: int) -> list[dict[str, Any]]:
    """A row per stage: stage, items, core_seconds, items_per_second, peak_gb."""
    store = write_features(folder / "made.zarr", items)
    rows = []
    for stage, words in STAGES.items():
        seconds, peak = measured(words.format(store=store, folder=folder).split())
        rows.append(
            {"stage": stage, "items": items, "core_seconds": seconds, "items_per_second": items / seconds, "peak_gb": peak}
        )
        console.note(f"{items} items, {stage}: {seconds:.1f} core-seconds, {peak:.2f} GB")
    return rows


def measured(words: Sequence[str]) -> tuple[float, float]:
    """Core-seconds and largest resident memory in GB of one command. Raises WorkFailedError if it fails."""
    environment = {**os.environ, **dict.fromkeys(threads.ENVIRONMENT, "1")}
    process = subprocess.Popen([sys.executable, "-m", "calmrl_lab.cli", *words], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise WorkFailedError(f"calmrl-lab {' '.join(words)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)


def slopes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Exponent of core-seconds in items, per stage, between the smallest and the largest number of items."""
    found = {}
    for stage in STAGES:
        own = [row for row in rows if row["stage"] == stage]
        if len(own) > 1:
            first, last = own[0], own[-1]
            found[stage] = math.log(last["core_seconds"] / first["core_seconds"]) / math.log(last["items"] / first["items"])
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of a page."""
    steep = slopes(rows)
    lines = ["| stage | items | core-seconds | items a second | slope | peak memory, GB |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        slope = f"{steep[row['stage']]:.2f}" if row["stage"] in steep and row["items"] == max(r["items"] for r in rows) else ""
        lines.append(
            f"| {row['stage']} | {row['items']:,} | {row['core_seconds']:.1f} | {row['items_per_second']:,.0f} | {slope} | {row['peak_gb']:.2f} |"
        )
    return "\n".join(lines)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Growth with the number of items", box=None, title_justify="left")
    for heading in ("stage", "items", "core-seconds", "items/s", "peak GB"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in rows:
        table.add_row(
            row["stage"],
            f"{row['items']:,}",
            f"{row['core_seconds']:.1f}",
            f"{row['items_per_second']:,.0f}",
            f"{row['peak_gb']:.2f}",
        )
    console.show(table)
    for stage, slope in slopes(rows).items():
        console.out.print(f"{stage}: grows with items to the power {slope:.2f}")


if __name__ == "__main__":
    run(main)
