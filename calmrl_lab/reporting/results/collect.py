"""Collects the finished runs of a folder by method, with a sentence for every run that cannot be counted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calmrl_lab.config import TrainConfig, laid_over
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.score_rows import COUNTS
from calmrl_lab.methods import load, names
from calmrl_lab.methods.resolve import resolve
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["oracle", "baseline", "calibrated", "control"]
# Imputers that use nothing of the item itself: what calibration has to beat.
_CONTROL_IMPUTERS = frozenset({"mean", "random", "zero"})


@dataclass(frozen=True)
class Problem:
    """A run that is not in the numbers, and why, in one sentence."""

    run: str
    kind: Literal["failed", "unfinished", "not evaluated", "other version", "damaged", "lost", "other store", "other settings"]
    sentence: str
    detail: str = ""


@dataclass(frozen=True)
class RunRecord:
    """One finished, evaluated run: its seed, its settings and what was found, its Parquet tables (`scores` is always there), and what its features score as
    they come (`features`, a record per direction, as evaluation.json has them)."""

    name: str
    seed: int
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    frames: dict[str, pd.DataFrame]
    path: Path
    features: tuple[dict[str, Any], ...] = ()

    @property
    def scores(self) -> pd.DataFrame:
        return self.frames["scores"]


@dataclass(frozen=True)
class Method:
    """All runs of one row of the tables, by seed."""

    name: str
    label: str
    role: Role
    runs: tuple[RunRecord, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    tuning: tuple[dict[str, Any], ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def objective(self) -> str:
        return str(self._asked("objective"))

    @property
    def imputer(self) -> str:
        return str(self._asked("impute"))

    @property
    def scenario(self) -> str:
        return str(self._asked("scenario"))

    @property
    def init(self) -> str:
        return str(self._asked("init"))

    @property
    def dim(self) -> int | None:
        """Dimension of the embeddings; None if no run says."""
        found = [run.summary.get("dim", run.config.get("dim")) for run in self.runs]
        return int(found[0]) if found and isinstance(found[0], int) else None

    @property
    def trained(self) -> bool:
        """Whether training moved the heads on the (possibly incomplete) training items."""
        return self.objective != "none" and self._asked("epochs") != 0

    @property
    def plain_contrast(self) -> bool:
        """Whether it is plain contrastive training of the observed pairs: CLIP from a start that knows no model of what is missing."""
        return self.objective == "clip" and self.imputer == "none" and not _models_gaps(self._config())

    @property
    def warmed_up(self) -> bool:
        """Whether heads were trained on complete items of a warm-up store first."""
        return self._asked("warm_up") not in (None, "?") and self._asked("warm_up_epochs") != 0

    def _asked(self, key: str) -> Any:
        return self._config().get(key, "?")

    def _config(self) -> dict[str, Any]:
        return self.runs[0].config if self.runs else self.settings

    def frame(self, name: str) -> list[tuple[int, pd.DataFrame]]:
        """(seed, table) of the runs that have the Parquet table `name`."""
        return [(run.seed, run.frames[name]) for run in self.runs if name in run.frames]


@dataclass(frozen=True)
class Gathered:
    """An experiment as it lies on disk. `methods` keeps the order of the experiment file and has only methods with a run."""

    folder: Path
    title: str
    notes: str
    split: str
    methods: tuple[Method, ...]
    absent: tuple[Method, ...]
    store: dict[str, Any]
    problems: tuple[Problem, ...]
    common: dict[str, Any]
    complete: bool
    extra: dict[str, Any]
    stand_in: str = ""
    """What the data stands in for, and what it cannot show; empty for data that stands for itself."""

    def role(self, role: Role) -> list[Method]:
        return [method for method in self.methods if method.role == role]


def gather(folder: Path | str) -> Gathered:
    """Everything that can be reported from `folder`: an experiment (experiment.json and runs), a folder of single runs, or one run.

    Runs that failed, did not finish, were not evaluated, are damaged or of another format become `problems`, never an exception.
    Raises CalmrlError if the folder does not exist, holds several experiments, holds no run at all, or its experiment.json is damaged.
    """
    folder = _experiment_folder(Path(folder))
    record = ExperimentFolder(folder).read()
    problems: list[Problem] = []
    found: dict[str, RunRecord] = {}
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    places = inside if inside or not _is_run(folder) else [folder.resolve()]
    for place in places:
        loaded = _load(place)
        if isinstance(loaded, Problem):
            problems.append(loaded)
        else:
            found[place.name] = loaded
    problems += _failures(record, problems, found)
    problems += _lost(folder, record, problems, found)
    if not places and not record:
        raise CalmrlError(
            f"'{folder}' holds no runs",
            hint="calmrl-lab experiment experiments/demo.yaml writes runs/demo; name it with --runs",
        )
    others = _others_asked(record, found) if record.get("methods") else _unequal_seeds(found)
    problems += others
    for problem in others:
        del found[problem.run]
    methods = _methods_of(record, found) if record.get("methods") else _methods_by_name(found)
    store = dict(record.get("store") or {}) or _store_of(list(found.values()))
    problems += _foreign(store, list(found.values()))
    return Gathered(
        folder=folder,
        title=_title(record, folder),
        notes=str(record.get("notes") or ""),
        split=str(record.get("split") or "test"),
        methods=tuple(method for method in methods if method.runs),
        absent=tuple(method for method in methods if not method.runs),
        store=store,
        problems=tuple(sorted(problems, key=lambda problem: problem.run)),
        common=dict(record.get("common") or {}),
        complete=bool(record.get("finished", bool(record))),
        extra={key: value for key, value in record.items() if key not in {"methods", "store", "failed", "common"}},
        stand_in=str(record.get("stand_in") or ""),
    )


def _title(record: dict[str, Any], folder: Path) -> str:
    title = str(record.get("title") or f"Runs in {folder.resolve().name}")
    return f"{title} (stand-in: {record.get('data') or 'other data'})" if record.get("stand_in") else title


def _experiment_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CalmrlError(f"there is no folder '{folder}'", hint="calmrl-lab experiment experiments/demo.yaml writes runs/demo")
    if (folder / "experiment.json").is_file() or any(_is_run(path) for path in folder.iterdir() if path.is_dir()):
        return folder
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and _holds_runs(path))
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside)
        raise CalmrlError(f"'{folder}' holds {len(inside)} experiments: {names}", hint=f"name one: --runs {inside[0]}")
    return inside[0] if inside else folder


def _is_run(path: Path) -> bool:
    """Whether a folder is a run, or what is left of one that has lost a file."""
    return any((path / name).is_file() for name in (Run.CONFIG, Run.ERROR, Run.SUMMARY, Run.EVALUATION))


def _holds_runs(path: Path) -> bool:
    return (path / "experiment.json").is_file() or any(_is_run(inner) for inner in path.iterdir() if inner.is_dir())


def _load(path: Path) -> RunRecord | Problem:
    try:
        failure = Run(path).read_record(Run.ERROR)
    except CalmrlError as error:
        return Problem(path.name, "damaged", _local(error.message, path))
    if failure is not None:
        return Problem(path.name, "failed", str(failure.get("error", "no reason was kept")), str(failure.get("traceback", "")))
    try:
        run = Run.open(path)
    except CalmrlError as error:
        return Problem(path.name, "other version", _local(error.message, path))
    if not run.finished():
        return Problem(
            path.name, "unfinished", f"run '{path.name}' has not finished; calmrl-lab train-heads --resume goes on with it"
        )
    try:
        if not run.has(run.SCORES):
            sentence = f"run '{path.name}' has no scores; calmrl-lab evaluate --run computes them"
            return Problem(path.name, "not evaluated", sentence)
        read = {name.removesuffix(".parquet"): _readable(run, name) for name in sorted(run.digests(run.EVALUATION) or {})}
        config, summary, environment, metrics = run.settings, run.summary, run.environment, run.metrics
        features = _features(run)
    except CalmrlError as error:
        return Problem(path.name, "damaged", _local(error.message, path))
    return RunRecord(
        name=path.name,
        seed=int(summary.get("seed", config.get("seed", 0))),
        config=config,
        summary=summary,
        environment=environment,
        metrics=metrics,
        # Nothing to say about (no gap whose truth is known, for example) is the same as not there.
        frames={name: frame for name, frame in read.items() if len(frame)},
        path=path,
        features=features,
    )


# What evaluation.json says of the features in each direction, and of which kind each value is.
_FEATURES = {"query": str, "gallery": str, "feature_recall_at_1": float, "difference": float, "high": float}


def _features(run: Run) -> tuple[dict[str, Any], ...]:
    """What the features score as they come; records of another form, which other versions may have written, are left out."""
    found = run.evaluation.get("features")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return tuple(row for row in rows if all(isinstance(row.get(name), kind) for name, kind in _FEATURES.items()))


def _local(sentence: str, path: Path) -> str:
    """The sentence without the folders above the run: a page is read elsewhere than it was made."""
    return sentence.replace(f"{path.parent}/", "")


# The columns that the report computes with; a table without one of them is of another version.
_NEEDED = {
    "scores": ("query", "gallery", "item", "group", "pattern", *COUNTS),
    "imputation": ("imputer", "modality", "pattern", "split", "item", "group", "squared_error"),
    "anchors": ("imputer", "pattern", "split", "item", "group", "shift_observed", "shift_calibrated", "lower", "upper"),
    "classification": ("kind", "modality", "item", "group", "label", "correct"),
    "rerank": ("query", "gallery", "scorer", "group", *COUNTS),
    "curves": ("query", "gallery", "side", "scorer", "calibrated", "gallery_scenario", "group", *COUNTS),
}
# Tables of this many rows per run are read with the needed columns only.
_LARGE = frozenset({"curves"})


def _readable(run: Run, name: str) -> pd.DataFrame:
    stem = name.removesuffix(".parquet")
    frame = run.read_frame(name, list(_NEEDED[stem]) if stem in _LARGE else None)
    if not len(frame.columns):
        return frame
    lacking = [column for column in _NEEDED.get(stem, ()) if column not in frame.columns]
    if lacking:
        raise CalmrlError(f"'{run.path / name}' has no column '{lacking[0]}'; evaluate the run again with this version")
    if stem == "scores" and frame.empty:
        raise CalmrlError(f"'{run.path / name}' has no rows")
    return frame


def _failures(record: dict[str, Any], known: Sequence[Problem], found: dict[str, RunRecord]) -> list[Problem]:
    """Failures that only experiment.json knows of (trials of a grid, workers that died); runs that finished later are not repeated."""
    named = {problem.run for problem in known} | set(found)
    return [
        Problem(str(row["run"]), "failed", str(row.get("error", "no reason was kept")), str(row.get("traceback", "")))
        for row in record.get("failed") or []
        if isinstance(row, dict) and row.get("run") and row["run"] not in named
    ]


def _lost(folder: Path, record: dict[str, Any], known: Sequence[Problem], found: dict[str, RunRecord]) -> list[Problem]:
    """What was there once and is not any more: runs of a finished experiment, or the record of the experiment that made the runs."""
    if not record:
        made = [run.name for run in found.values() if "asked" in run.summary]
        sentence = f"'{folder.resolve().name}' has no experiment.json, so the runs of an experiment are shown one by one"
        return [Problem(made[0], "lost", sentence)] if made else []
    named = {problem.run for problem in known} | set(found)
    expected = [name for entry in record.get("methods") or [] for name in entry.get("runs") or []]
    return [
        Problem(name, "lost", f"run '{name}' is not there any more; calmrl-lab experiment makes it again")
        for name in expected
        if record.get("finished") and name not in named
    ]


def _others_asked(record: dict[str, Any], found: dict[str, RunRecord]) -> list[Problem]:
    """Runs of an earlier form of the experiment: their settings are not those of the record, so they are no row of its tables."""
    problems = []
    for entry in record["methods"]:
        values = {
            "store": (record.get("store") or {}).get("path"),
            **laid_over(record.get("common") or {}, entry.get("settings") or {}),
            "method": entry.get("method"),
        }
        try:
            asked = resolve(values, "experiment.json").model_dump(mode="json")
        except CalmrlError:
            asked = {}
        for name in entry.get("runs") or []:
            if name not in found:
                continue
            differing = _differing(found[name].config, asked)
            ranked = Run(found[name].path).evaluation.get("split")
            if ranked not in (None, record.get("split")):
                differing = [*differing, f"split {ranked}, not {record.get('split')}"]
            seed = name.rpartition("-s")[2]
            if seed.isdecimal() and int(seed) != found[name].seed:
                differing = [*differing, f"seed {found[name].seed}, not {seed}"]
            if differing:
                problems.append(
                    Problem(
                        name,
                        "other settings",
                        f"run '{name}' was made with other settings than the experiment has now ({'; '.join(differing[:3])}); "
                        "calmrl-lab experiment makes it again",
                    )
                )
    return problems


def _unequal_seeds(found: dict[str, RunRecord]) -> list[Problem]:
    """Single runs whose names differ only in the seed, and whose settings differ in more: they are no seeds of one method."""
    first: dict[str, RunRecord] = {}
    problems = []
    for name, run in found.items():
        other = first.setdefault(_stem(name), run)
        differing = _differing(run.config, other.config)
        if differing:
            problems.append(
                Problem(
                    name,
                    "other settings",
                    f"run '{name}' is no further seed of '{other.name}': {'; '.join(differing[:3])}; give it a name of its own",
                )
            )
    return problems


def _differing(config: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Settings of a run that are not those of the record, seeds apart; none where the two cannot be compared (of other versions)."""
    try:
        own, wanted = (
            TrainConfig(**{k: v for k, v in c.items() if k != "format"}).model_dump(mode="json", exclude={"changed"})
            for c in (config, asked)
        )
    except (TypeError, ValueError):
        return []
    keys = [key for key in own if own[key] != wanted[key] and key not in ("seed", "split_seed")]
    return [f"{key} {_brief(own[key])}, not {_brief(wanted[key])}" for key in keys]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _methods_of(record: dict[str, Any], found: dict[str, RunRecord]) -> list[Method]:
    methods = []
    for entry in record["methods"]:
        names = entry.get("runs") or [name for name in found if _stem(name) == entry["name"]]
        runs = tuple(sorted((found[name] for name in names if name in found), key=lambda run: run.seed))
        role: Role = entry.get("role") or "baseline"
        label = str(entry.get("label") or entry["name"])
        methods.append(
            Method(entry["name"], label, role, runs, dict(entry.get("settings") or {}), tuple(entry.get("tuning") or ()))
        )
    return methods


def _stem(name: str) -> str:
    return re.sub(r"-s\d+$", "", name)


def _methods_by_name(found: dict[str, RunRecord]) -> list[Method]:
    """Methods of runs that no experiment file describes: runs whose names differ only in the seed belong together."""
    grouped: dict[str, list[RunRecord]] = {}
    for name, run in found.items():
        grouped.setdefault(_stem(name), []).append(run)
    hidden = any(run.config.get("scenario", "full") != "full" for run in found.values())
    methods = []
    for name, runs in grouped.items():
        first = runs[0]
        label = str(first.summary.get("method", name))
        if any(other != name and str(rows[0].summary.get("method", other)) == label for other, rows in grouped.items()):
            label = f"{label} ({name})"
        methods.append(Method(name, label, _role(first.config, hidden), tuple(sorted(runs, key=lambda run: run.seed))))
    return methods


def _models_gaps(config: dict[str, Any]) -> bool:
    """Whether a run, or a member of it, starts from PPCA under the mask of the training items."""
    members = [dict(member) for member in config.get("members") or ()]
    methods = [load(str(member["method"])).settings for member in members if member.get("method") in names()]
    return any(part.get("init") == "ppca" for part in (config, *members, *methods))


def _role(config: dict[str, Any], hidden: bool) -> Role:
    if hidden and config.get("scenario", "full") == "full":
        return "oracle"
    imputer = config.get("impute", "none")
    if imputer == "none":
        return "calibrated" if _models_gaps(config) else "baseline"
    return "control" if imputer in _CONTROL_IMPUTERS else "calibrated"


def _store_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the runs themselves remember of their store, where no experiment.json describes it."""
    for run in runs:
        if isinstance(run.summary.get("store"), dict):
            return {**run.summary["store"], "modalities": run.summary.get("modalities", [])}
    return {}


def _foreign(store: dict[str, Any], runs: Sequence[RunRecord]) -> list[Problem]:
    digest = store.get("digest")
    others = [run for run in runs if digest and (run.summary.get("store") or {}).get("digest", digest) != digest]
    return [
        Problem(
            run.name,
            "other store",
            f"run '{run.name}' was trained on another version of the store; its numbers are shown all the same",
        )
        for run in others
    ]
