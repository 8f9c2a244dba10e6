"""Run directories: what a training run was asked, what it learned, where it ran; written so that half a run is never taken for a whole."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from calmrl_lab._version import __version__
from calmrl_lab.config import TrainConfig, build, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_files import is_temporary, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from calmrl_lab.model.alignment_model import AlignmentModel

# Raised when the files of a run change their meaning; runs of another number are refused by name.
FORMAT = 3
_RECORDED = ("torch", "numpy", "scipy", "zarr", "faiss-cpu", "faiss-gpu", "pandas", "scikit-learn")


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


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> Run:
        """A new directory with config.yaml and environment.json. CalmrlError if a finished or foreign directory is in the way."""
        # A process that was killed while it wrote leaves the temporary file of `write_atomically`: that is ours.
        found = [inner for inner in path.iterdir() if not is_temporary(inner.name)] if path.is_dir() else []
        if found and not (path / "config.yaml").exists():
            raise CalmrlError(f"'{path}' exists and is not a run", hint="choose another --name or --runs folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CalmrlError(f"the run directory '{path}' cannot be made: {error.strerror or error}") from None
        run = cls(path)
        for stale in (
            "summary.json",
            "evaluation.json",
            "metrics.jsonl",
            "log.txt",
            *(old.name for old in path.glob("*.parquet")),
        ):
            (path / stale).unlink(missing_ok=True)
        values = {"format": FORMAT, **config.model_dump(mode="json")}
        write_atomically(path / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
        run.write_json("environment.json", environment())
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run; CalmrlError if it is none, or was written by another version of the format."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise CalmrlError(
                f"'{path}' is not a run: it has no config.yaml", hint="calmrl-lab train-heads writes runs under runs/"
            )
        found = read_yaml(path / "config.yaml").get("format")
        if found != FORMAT:
            raise CalmrlError(
                f"run '{path}' was written in format {found}, this version reads format {FORMAT}", hint="train it again"
            )
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> TrainConfig:
        values = read_yaml(self.path / "config.yaml")
        values.pop("format", None)
        return build(TrainConfig, values, str(self.path / "config.yaml"))

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; CalmrlError if the run has not finished."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CalmrlError(
                f"run '{self.path}' has not finished", hint=f"go on with: calmrl-lab train-heads --resume {self.path}"
            ) from None
        except ValueError as error:
            raise CalmrlError(f"'{self.path / 'summary.json'}' is damaged: {error}") from None

    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(values, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """The mapping in a JSON file of this run; empty if there is none. CalmrlError if it is damaged."""
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise CalmrlError(f"'{self.path / name}' is damaged: {error}") from None

    def append(self, name: str, line: str) -> None:
        """Add one line to a log of this run."""
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")

    def write_tensors(self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """A safetensors file of arrays, with text metadata."""
        import numpy as np
        from safetensors.numpy import save

        data = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / name, save(data, metadata=dict(metadata)))

    def read_tensors(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays and metadata of a safetensors file; CalmrlError if it is absent or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.path / name
        if not path.is_file():
            raise CalmrlError(f"run '{self.path}' has no {name}", hint="the run did not finish, or has nothing to impute with")
        try:
            with safe_open(str(path), framework="numpy") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CalmrlError(f"'{path}' is damaged: {error}") from None

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """A Parquet table, written atomically."""
        import io

        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomically(self.path / name, buffer.getvalue())

    def read_frame(self, name: str) -> pd.DataFrame:
        """A Parquet table of this run; CalmrlError if it is absent or damaged."""
        import pandas as pd

        path = self.path / name
        if not path.is_file():
            raise CalmrlError(f"run '{self.path}' has no {name}", hint=f"calmrl-lab evaluate --run {self.path}")
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise CalmrlError(f"'{path}' is damaged: {error}") from None

    def model(self) -> AlignmentModel:
        """What this run learned, on the CPU. Raises CalmrlError for a run that has not finished, or whose model is absent or damaged."""
        from calmrl_lab.model.alignment_model import AlignmentModel

        if not self.finished():
            raise CalmrlError(
                f"run '{self.path}' has not finished", hint=f"go on with: calmrl-lab train-heads --resume {self.path}"
            )
        return AlignmentModel.load(self)
