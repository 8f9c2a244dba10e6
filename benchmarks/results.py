"""The results page: every objective with and without gaps, and what goes beyond them, as tables from finished runs.

calmrl-lab bench results                             run what is not finished (one to two hours on two cores), print the tables
calmrl-lab bench results --write docs                the same into docs/results.md and docs/beyond.md, between their marks, and beyond.svg
calmrl-lab bench results --only objectives-pairs     one experiment
calmrl-lab bench results --untuned --set 'seeds=[0,1]'   without choosing among a grid, and with fewer seeds: a fraction of the time
calmrl-lab bench results --quick                     two methods, one seed and one pass each, to see that it works
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from _gains import gains
from _marks import put
from _own_terms import markdown, own_terms

from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.runner import run_experiment
from calmrl_lab.experiments.spec import candidates
from calmrl_lab.reporting import write_report
from calmrl_lab.runtime import console
from calmrl_lab.runtime.atomic_files import write_atomically

ROOT = Path(__file__).parents[1]
# Folder of runs -> the page that shows it.
OWN_TERMS = "objectives-own"
SHOWN = {"objectives-pairs": "results.md", "objectives-full": "results.md", OWN_TERMS: "results.md"}
# The same, with the name of the row in the figure of that page.
GAINS = {
    "beyond-openmoji": "openmoji,\na quarter complete",
    "gaps-tenth": "openmoji,\na tenth complete",
    "gaps-half": "openmoji,\nhalf complete",
    "gaps-blocks": "openmoji, blocks",
    "gaps-natural": "openmoji,\nnatural gaps",
    "beyond-digits": "digits,\na quarter complete",
}
SHOWN |= dict.fromkeys(GAINS, "beyond.md")
_QUICK = ("common.epochs=1", "seeds=[0]", "tuning_seeds=[100]", "split_by_seed=false")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", choices=list(SHOWN), help="an experiment; may be repeated")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", type=Path, metavar="DIR", help="folder of results.md and beyond.md")
    parser.add_argument("--store", type=Path, help="use this store in place of the one of the experiment")
    parser.add_argument("--untuned", action="store_true", help="take the first candidate of every grid")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the file")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    changes = [
        *(_QUICK if options.quick else ()),
        *([f"store={options.store.resolve()}"] if options.store else []),
        *options.set,
    ]
    found, summaries = {}, {}
    for name in options.only or SHOWN:
        found[name], summaries[name] = section(
            name, options.runs.resolve(), options.jobs, changes, options.quick, options.untuned or options.quick
        )
        if options.write:
            put(options.write / SHOWN[name], name, found[name])
    if options.write and set(GAINS) <= set(summaries):
        figure = gains({row: summaries[name] for name, row in GAINS.items()})
        write_atomically(options.write / "beyond.svg", figure.svg().encode())
    console.emit(found, options.json, lambda: console.out.print("\n\n".join(found.values()), markup=False, soft_wrap=True))


def section(name: str, runs: Path, jobs: int, changes: Sequence[str], quick: bool, untuned: bool) -> tuple[str, pd.DataFrame]:
    """Markdown of one experiment and the rows of its first table; finished runs are not made again."""
    file, _, data = name.partition("-")
    # Experiment files name stores relative to the root.
    os.chdir(ROOT)
    experiment = read_experiment(ROOT / "experiments" / f"{file}.yaml", changes, data)
    if quick:
        experiment = experiment.model_copy(update={"methods": experiment.methods[:2]})
    if untuned:
        firsts = [method.model_copy(update={"settings": candidates(method)[0], "grid": {}}) for method in experiment.methods]
        experiment = experiment.model_copy(update={"methods": tuple(firsts)})
    record = run_experiment(experiment, runs / name, jobs)
    if name == OWN_TERMS:
        table = own_terms(record, runs / name)
        return f"{markdown(table)}\n\n{settings(record, runs / name)}", table
    with tempfile.TemporaryDirectory(prefix="calmrl-results-") as folder:
        write_report(runs / name, Path(folder) / "report")
        tables = Path(folder) / "report" / "tables"
        table = (tables / "summary.md").read_text(encoding="utf-8")
        summary = pd.read_csv(tables / "summary.csv")
    return f"{table.strip()}\n\n{settings(record, runs / name)}", summary


def settings(record: dict[str, Any], folder: Path) -> str:
    """What validation chose for each method, among how many candidates, and the mean seconds of a run."""
    from calmrl_lab.runs.run import Run

    lines = ["| method | chosen on validation | candidates | seconds per run |", "| --- | --- | ---: | ---: |"]
    for method in record["methods"]:
        tuned = method["tuning"]
        varied = sorted({key for row in tuned for key in _flat(row["settings"]) if _differs(tuned, key)})
        flat = _flat(method["settings"])
        chosen = [f"{key.removeprefix('objective_options.')} {flat[key]}" for key in varied]
        candidates = str(len(tuned) or 1)
        taken = [Run.open(folder / run).summary for run in method["runs"] if (folder / run / "summary.json").is_file()]
        started = [row["start"] for row in taken if row.get("start")]
        if started:
            scale = "likelihood_ratio_noise_scale" if flat.get("similarity") == "likelihood-ratio" else "noise_scale"
            inner = [
                f"{name.replace('_', ' ')} {' or '.join(map(str, sorted({start[name] for start in started})))}"
                for name in ("latent_dim", "components", "whitening", "iterations", scale)
            ]
            chosen.append(f"by split: {', '.join(inner)}")
            candidates += f"; by split up to {max(start['candidates'] for start in started)} starts"
        if any(len(row.get("weights") or ()) > 1 for row in taken):
            chosen.append("weights by split")
        seconds = sum(row["seconds"] for row in taken) / max(len(taken), 1)
        lines.append(f"| {method['label']} | {'; '.join(chosen) or 'nothing to choose'} | {candidates} | {seconds:.1f} |")
    return "\n".join(lines)


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _differs(tuned: Sequence[dict[str, Any]], key: str) -> bool:
    return len({str(_flat(row["settings"]).get(key)) for row in tuned}) > 1


if __name__ == "__main__":
    main()
