"""Names of items and their nearest items in a run, from the store of the runs where it still exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.reporting.output.thumbnails import emoji_picture
from calmrl_lab.reporting.results.collect import Gathered, RunRecord
from calmrl_lab.reporting.results.recalls import Direction

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

# Labels that say in words what an item is, best first.
_NAMES = ("name", "title", "caption", "text")


def source(gathered: Gathered) -> FeatureStore | None:
    """The store of these runs if it lies where they say and has not changed since; else None."""
    from calmrl_lab.store import FeatureStore

    place, digest = gathered.store.get("path"), gathered.store.get("digest")
    if not place or not Path(str(place)).exists():
        return None
    try:
        store = FeatureStore.open(Path(str(place)))
    except CalmrlError:
        return None
    return store if digest in (None, store.digest) else None


@dataclass(frozen=True)
class Items:
    """How items are shown to a person: `names` in words by id, and `draw`, an id -> its picture (a data URI, a character, or nothing)."""

    names: Mapping[str, str] = field(default_factory=dict)
    draw: Callable[[str], str] = field(default=lambda item: "")

    def name(self, item: str) -> str:
        return self.names.get(item, item)

    def picture(self, item: str) -> str:
        return self.draw(item)


def describe(store: FeatureStore | None) -> Items:
    """Names from the first label that looks like one; pictures for openmoji, whose items are named by the code points of an emoji."""
    if store is None:
        return Items()
    ids = [str(item) for item in store.ids]
    label = next((store.labels[name] for name in _NAMES if name in store.labels), None)
    names = {} if label is None else dict(zip(ids, map(str, label), strict=True))
    return Items(names, emoji_picture) if store.dataset == "openmoji" else Items(names)


def found_first(
    store: FeatureStore, run: RunRecord, direction: Direction, items: Sequence[str], split: str, depth: int = 5
) -> dict[str, list[str]]:
    """For every query item, the first `depth` gallery items of `split`, best first, as `run` was scored.

    An item that owns several rows is represented by its first row as a query and by its best row in the gallery. Empty if the model
    of the run cannot be read.
    """
    import numpy as np

    from calmrl_lab.data.table import load_table
    from calmrl_lab.data.training_data import splits_of
    from calmrl_lab.runs.run import Run

    try:
        trained = Run.open(run.path)
        model, config = trained.model(), trained.config
        if "scorer" in run.scores.columns:
            model = model.compared_by(str(run.scores["scorer"].iloc[0]))
    except CalmrlError:
        return {}
    query, gallery = (model.modalities.index(name) for name in direction)
    table = load_table(store, model.modalities)
    held_out = table.select(np.flatnonzero(splits_of(store, config) == split))
    place = {str(item): index for index, item in enumerate(held_out.ids)}
    asked = [item for item in items if item in place and _owns(held_out, query, place[item])]
    if not asked:
        return {}
    starts = held_out.offsets[query][[place[item] for item in asked]]
    left, right = model.pair_vectors(*direction, held_out.rows[query][starts], held_out.rows[gallery])
    scores = left @ right.T
    owners = np.repeat(np.arange(len(held_out)), held_out.offsets[gallery].diff().numpy())
    found = {}
    for item, row in zip(asked, scores.numpy(), strict=True):
        order = owners[np.argsort(-row, kind="stable")]
        distinct = list(dict.fromkeys(order[: depth * 20].tolist()))[:depth]
        found[item] = [str(held_out.ids[index]) for index in distinct]
    return found


def _owns(table: Any, modality: int, index: int) -> bool:
    return bool(table.offsets[modality][index + 1] > table.offsets[modality][index])
