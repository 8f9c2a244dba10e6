"""The metrics of runs as TensorBoard event files; metrics.jsonl stays what everything else reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError, missing_extra
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.atomic_folders import replaced_folder


def export_to_tensorboard(runs: Path | str, out: Path | str) -> dict[str, int]:
    """Write the metrics of every run in `runs` (or of the one run that it is) as events under `out`/<run>; {run: number of values}.

    The step is that of the optimiser; epoch, phase and what is not a finite number are left out of the curves. A run's folder under
    `out` is replaced whole. Raises CalmrlError where there is no run, a metrics file is damaged, or TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("tensorboard", "tracking", "TensorBoard files") from None
    runs, out = Path(runs), Path(out)
    found = [runs] if (runs / "metrics.jsonl").is_file() else sorted(path.parent for path in runs.glob("*/metrics.jsonl"))
    if not found:
        raise CalmrlError(f"'{runs}' holds no run with metrics", hint="name a run, or a folder of runs, with --runs")
    written = {}
    for path in found:
        lines = _lines(path / "metrics.jsonl")
        settings = Run.open(path).config.model_dump(mode="json")
        with replaced_folder(out / path.name, _refuse_foreign) as half:
            writer = SummaryWriter(str(half))
            written[path.name] = _write(writer, lines)
            writer.add_text("config", f"```json\n{json.dumps(settings, indent=2)}\n```")
            writer.close()
    return written


def _write(writer: Any, lines: list[dict[str, Any]]) -> int:
    count = 0
    for line in lines:
        for name, value in line.items():
            if name not in ("epoch", "step", "phase") and isinstance(value, (int, float)) and abs(value) < float("inf"):
                writer.add_scalar(name, value, line.get("step", 0))
                count += 1
    return count


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(json.loads(text))
        except ValueError:
            raise CalmrlError(
                f"'{path}', line {number}, is not JSON", hint="the run was cut off there; train it again"
            ) from None
    return found


def _refuse_foreign(place: Path) -> None:
    if any(not inner.name.startswith("events.") for inner in place.rglob("*") if inner.is_file()):
        raise CalmrlError(f"'{place}' exists and holds other files than TensorBoard's", hint="choose another --out")
