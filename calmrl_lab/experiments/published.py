"""Experiment files that come with the package, found by name, and a first file for a store of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from calmrl_lab.config import read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest
from calmrl_lab.runtime.atomic_folders import new_file

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

# Where people keep experiment files, and where those of the package are: inside it once it is installed, beside it in a clone.
_OWN = Path("experiments")
_PLACES = (Path(__file__).parent / "files", Path(__file__).parents[2] / "experiments")


def find(file: str | Path) -> Path:
    """The experiment file that is meant by a path, or by the name of a file in experiments/ or of one that comes with the package.

    Raises CalmrlError, with the names that there are, if there is none.

    >>> find("table3").name
    'table3.yaml'
    """
    path = Path(file)
    if path.is_file():
        return path
    if path.parent in (Path(), _OWN):
        for folder in (_OWN, *_PLACES):
            found = folder / f"{path.name.removesuffix('.yaml')}.yaml"
            if found.is_file():
                return found
    raise CalmrlError(
        f"there is no file '{path}', and no experiment of that name{nearest(path.stem, names())}",
        hint=f"known experiments: {', '.join(names())}; new writes a file to start from",
    )


def names() -> list[str]:
    """Names of the experiments that come with the package."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder is not None else []


def describe() -> dict[str, str]:
    """Name to title of every experiment that comes with the package."""
    return {name: str(read_yaml(find(name)).get("title", "")) for name in names()}


def write_first(store: FeatureStore, out: str | Path, overwrite: bool = False) -> Path:
    """Write an experiment file for `store` to start from, and return its path.

    A store that is complete has modalities hidden from three quarters of its training items, beside an oracle from which nothing is hidden; one
    with gaps of its own is taken as it is. Raises CalmrlError for a store of one modality, and for a file that is there, unless `overwrite`.
    """
    if len(store.modalities) < 2:
        raise CalmrlError(f"store '{store.path}' has one modality, so there is nothing to align")
    complete = bool(store.mask[store.split == "train"].all())
    methods: list[dict[str, object]] = [
        {"name": "recommended", "label": "recommended", "method": "recommended"},
        {"name": "clip", "label": "CLIP, observed pairs", "method": "clip"},
        {"name": "pmrl", "label": "PMRL, observed only", "method": "pmrl"},
        {"name": "calmrl", "label": "CalMRL, PPCA", "role": "calibrated", "method": "calmrl"},
        {"name": "calmrl-mean", "label": "CalMRL, mean", "role": "control", "method": "calmrl", "settings": {"impute": "mean"}},
    ]
    if complete:
        oracle: dict[str, object] = {
            "name": "oracle",
            "label": "PMRL, nothing hidden (oracle)",
            "role": "oracle",
            "method": "pmrl",
            "settings": {"scenario": "full"},
        }
        methods.insert(0, oracle)
    values = {
        "title": f"{store.dataset}: " + ("three quarters of the items show two modalities" if complete else "gaps as they are"),
        "store": str(store.path),
        "seeds": [0, 1, 2],
        "common": {"scenario": "pairs:0.25" if complete else "full", "epochs": 40},
        "methods": methods,
    }
    with new_file(out, overwrite) as path:
        path.write_text(f"{_HEADER}{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)}", encoding="utf-8")
    return Path(out)


_HEADER = """\
# calmrl-lab experiment FILE --dry-run prints the plan, without --dry-run it runs; then: calmrl-lab report --runs runs/NAME
# common: settings of every method (scenario: what training may see; full hides nothing). settings: those of one method, laid over them.
# grid: {KEY: [VALUE, ...]} beside a method tries values on validation items. docs/experiments.md has every key.
"""
