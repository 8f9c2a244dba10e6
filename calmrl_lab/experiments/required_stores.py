"""The feature stores that an experiment reads, and the command that makes each one that is absent."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.spec import Experiment, candidates, run_config

# Datasets whose media come with Python packages.
_PACKAGED = frozenset({"openmoji", "digits"})


def absent_stores(experiment: Experiment) -> list[str]:
    """Stores that some run would read, or be scored on, and that do not exist, in the order in which they are needed."""
    named: dict[str, None] = {}
    for method in experiment.methods:
        for settings in candidates(method):
            config = run_config(experiment, method, settings, experiment.seeds[0], method.name)
            named |= dict.fromkeys([config.store, *([config.warm_up] if config.warm_up else []), *config.mix])
    if experiment.score_on:
        named[experiment.score_on] = None
    return [store for store in named if not Path(store).exists()]


def refuse_absent_stores(experiment: Experiment) -> None:
    """CalmrlError for the first store that is not there, with the command that makes it."""
    for store in absent_stores(experiment):
        raise CalmrlError(f"the feature store '{store}' does not exist", hint=f"make it with: {making(store)}")


def making(store: str) -> str:
    """The command that extracts `store`, whose name is taken for that of its dataset."""
    dataset = Path(store).stem
    media = "" if dataset in _PACKAGED else " --media DIR --weights DIR"
    return f"calmrl-lab extract --dataset {dataset if _known(dataset) else 'DATASET'}{media} --out {store}"


def _known(dataset: str) -> bool:
    """Whether there is a file of that name among the datasets; nothing is imported."""
    package = find_spec("feature_extractors")
    places = (package.submodule_search_locations or []) if package else []
    return any((Path(place) / "datasets" / f"{dataset}.py").is_file() for place in places)
