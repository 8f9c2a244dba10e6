"""The folder of a run: the names of its files, its configuration and summary, and how it is created, finished and evaluated."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml

from calmrl_lab._version import __version__
from calmrl_lab.config import TrainConfig, build, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.artifact_folder import ArtifactFolder, digest, parquet_bytes
from calmrl_lab.runtime import locks
from calmrl_lab.runtime.atomic_folders import recover, refuse_working_folder, replace_folder, settled, writing_errors

if TYPE_CHECKING:
    import pandas as pd

# Raised when the files of a run change their meaning; runs of another number are refused by name.
FORMAT = 3
_RECORDED = ("torch", "numpy", "scipy", "zarr", "faiss-cpu", "faiss-gpu", "pandas", "scikit-learn")


class RunFolder(ArtifactFolder):
    """The folder of one run.

    summary.json, written last, covers the configuration, the metrics and every file of the model; evaluation.json for the tables.
    """

    kind: ClassVar[str] = "run"
    CONFIG: ClassVar[str] = "config.yaml"
    ENVIRONMENT: ClassVar[str] = "environment.json"
    METRICS: ClassVar[str] = "metrics.jsonl"
    LOG: ClassVar[str] = "log.txt"
    CHECKPOINT: ClassVar[str] = "state.pt"
    MODEL: ClassVar[str] = "model"
    MEMBERS: ClassVar[str] = "members"
    SUMMARY: ClassVar[str] = "summary.json"
    EVALUATION: ClassVar[str] = "evaluation.json"
    SCORES: ClassVar[str] = "scores.parquet"
    IMPUTATION: ClassVar[str] = "imputation.parquet"
    ANCHORS: ClassVar[str] = "anchors.parquet"
    CURVES: ClassVar[str] = "curves.parquet"
    CLASSIFICATION: ClassVar[str] = "classification.parquet"
    RERANK: ClassVar[str] = "rerank.parquet"
    ERROR: ClassVar[str] = "error.json"
    RECORD: ClassVar[str] = SUMMARY

    @classmethod
    @contextmanager
    def create(cls, path: Path | str, config: TrainConfig, overwrite: bool = False) -> Iterator[Self]:
        """A new folder with config.yaml and environment.json, locked for its writer; nothing of an earlier run stays in it.

        An unfinished run is replaced, a finished one only with `overwrite`. Raises CalmrlError if one is in the way, if the folder holds
        what no run has written, or if another process writes into it; WorkFailedError if it cannot be written. The old run is then as it was.
        """
        target = Path(os.path.realpath(path))

        def fill(folder: Path) -> None:
            new = cls(folder)
            values = {"format": FORMAT, **config.model_dump(mode="json")}
            asked = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
            new.write_json(cls.ENVIRONMENT, {**environment(), cls.CONFIG: digest(asked)})
            new.write_bytes(cls.CONFIG, asked)

        with writing_errors(target):
            recover(target)
            cls.refuse_place(target, overwrite)
            with locks.claimed(target):
                cls.refuse_place(target, overwrite)
                handle = replace_folder(target, fill)
        try:
            yield cls(path)
        finally:
            os.close(handle)

    @classmethod
    def refuse_place(cls, path: Path | str, overwrite: bool = False) -> None:
        """CalmrlError if no new run can be at `path`: it is a file or the working folder, or holds what no run has written, or a finished run
        that may not be replaced. Looks only, so that work need not be done first."""
        target = Path(os.path.realpath(path))
        refuse_working_folder(target)
        if os.path.lexists(target) and not target.is_dir():
            raise CalmrlError(f"'{path}' exists and is not a folder", hint="choose another folder with --run")
        if target.is_dir():
            cls.refuse_foreign(target)
        if (target / cls.SUMMARY).exists() and not overwrite:
            raise CalmrlError(
                f"'{path}' holds a finished run", hint="choose another folder with --run, or replace it with --overwrite"
            )

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """An existing run; CalmrlError if it is none, or was written in another version of the format."""
        if not isinstance(path, str | os.PathLike):
            raise CalmrlError(
                f"a run is expected, or the path of its folder; got a {type(path).__name__}",
                hint="a run that was opened knows its folder (run.path); a matrix of scores is for calmrl_lab.evaluate_matrix",
            )
        path = settled(Path(path))
        if not (path / cls.CONFIG).is_file():
            raise CalmrlError(
                f"'{path}' is not a run: it has no {cls.CONFIG}", hint="calmrl-lab train-heads writes runs under runs/"
            )
        run = cls(path)
        run.settings  # noqa: B018 - refuses what this version does not read
        return run

    def record_of(self, name: str) -> str:
        return self.EVALUATION if name.endswith(".parquet") else self.SUMMARY

    def digests(self, record: str) -> dict[str, str] | None:
        # A table that no evaluation.json covers was left by an evaluation that was killed.
        return super().digests(record) or ({} if record == self.EVALUATION else None)

    def read_record(self, record: str) -> dict[str, Any] | None:
        values = super().read_record(record)
        if values is not None and record == self.EVALUATION and values.get("of", self._learned()) != self._learned():
            raise self.damaged(record, "it belongs to another run, or to an earlier model of this one")
        return values

    def _learned(self) -> str | None:
        """The digest of what summary.json covers, by which an evaluation knows its run; None before the run has finished."""
        recorded = self.digests(self.SUMMARY)
        return None if recorded is None else digest(json.dumps(recorded, sort_keys=True).encode())

    def hint(self, name: str) -> str:
        commands = {self.CURVES: "curves", self.CLASSIFICATION: "classify", self.RERANK: "evaluate --rerank itm"}
        if name.endswith(".parquet") or name == self.EVALUATION:
            return f"calmrl-lab {commands.get(name, 'evaluate')} --run {self.path}"
        return "train the run again, with --overwrite"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml as it stands there. CalmrlError if it is of another format, or not what summary.json covers."""
        values = read_yaml(self.path / self.CONFIG)
        found = values.get("format")
        if found != FORMAT:
            raise CalmrlError(
                f"run '{self.path}' was written in format {found}, this version reads format {FORMAT}", hint="train it again"
            )
        recorded, record = self.digests(self.SUMMARY), self.SUMMARY
        if recorded is None and (self.path / self.ENVIRONMENT).is_file():
            # Until the run has finished, the digest is that which it began with.
            recorded, record = self.read_json(self.ENVIRONMENT), self.ENVIRONMENT
        if recorded is not None and self.config_digest() != recorded.get(self.CONFIG):
            raise self.damaged(self.CONFIG, f"its digest is not the one in {record}")
        return values

    @cached_property
    def config(self) -> TrainConfig:
        """What the run was asked to do."""
        values = {key: value for key, value in self.settings.items() if key != "format"}
        return build(TrainConfig, values, str(self.path / self.CONFIG))

    def config_digest(self) -> str:
        """The digest of config.yaml, by which a checkpoint knows its configuration."""
        return digest(self._read(self.CONFIG))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json without its digests; CalmrlError if the run has not finished."""
        values = self.read_record(self.SUMMARY)
        if values is None:
            raise CalmrlError(
                f"run '{self.path}' has not finished", hint=f"go on with: calmrl-lab train-heads --resume {self.path}"
            )
        return {key: value for key, value in values.items() if key != "files"}

    def finished(self) -> bool:
        return (self.path / self.SUMMARY).is_file()

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions and platform of the training; empty if there is none."""
        values = self.read_json(self.ENVIRONMENT) if self._expects(self.ENVIRONMENT) else {}
        return {key: value for key, value in values.items() if key != self.CONFIG}

    def _expects(self, name: str) -> bool:
        """Whether the file `name` should be there: summary.json covers it, or it was written by a run that has not finished."""
        recorded = self.digests(self.SUMMARY)
        return (self.path / name).is_file() if recorded is None else name in recorded

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one per epoch; a last line that a killed process did not finish is left out."""
        lines = []
        for line in (
            self.read_bytes(self.METRICS).decode("utf-8", "replace") if self._expects(self.METRICS) else ""
        ).splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which covers all that was written before: from here on the run is finished."""
        model = sorted((self.path / self.MODEL).rglob("*.safetensors"))
        names = [self.CONFIG, self.ENVIRONMENT, self.METRICS, *(path.relative_to(self.path).as_posix() for path in model)]
        digests = {name: digest(self._read(name)) for name in names if (self.path / name).is_file()}
        self.write_record(self.SUMMARY, {**summary, "files": digests})
        self.__dict__.pop("summary", None)

    def amend_summary(self, **values: Any) -> None:
        """Add values to the summary of a finished run."""
        record = self.read_record(self.SUMMARY) or {}
        files = record.pop("files", {})
        self.write_record(self.SUMMARY, {**record, **values, "files": files})
        self.__dict__.pop("summary", None)

    @property
    def evaluation(self) -> dict[str, Any]:
        """What evaluation.json says of the evaluation; empty if the run was not evaluated."""
        values = self.read_record(self.EVALUATION) or {}
        return {key: value for key, value in values.items() if key not in ("files", "of")}

    def write_evaluation(self, frames: Mapping[str, pd.DataFrame | None], facts: Mapping[str, Any]) -> None:
        """Replace the tables of an earlier evaluation, and what it says of itself; a table that is None is removed.

        All tables are whole on the disk before the first old one goes. Tables of other commands stay.
        """
        try:
            recorded = self.digests(self.EVALUATION) or {}
        except CalmrlError:  # damaged, and replaced by this
            recorded = {}
        kept = {name: found for name, found in recorded.items() if name not in frames}
        files = {name: parquet_bytes(frame) for name, frame in frames.items() if frame is not None}
        self.write_record(self.EVALUATION, {**facts, "of": self._learned(), "files": kept}, files)
        for name in frames.keys() - files.keys():
            (self.path / name).unlink(missing_ok=True)

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """A table beside those of the evaluation, which evaluation.json covers like them."""
        values = self.read_record(self.EVALUATION) or {}
        self.write_record(self.EVALUATION, {**values, "of": self._learned()}, {name: parquet_bytes(frame)})


def environment() -> dict[str, Any]:
    """Versions and platform, for the record (no host name, no user name, no absolute path)."""
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "calmrl_lab": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
