"""A store of all emoji to the small one the tests read: 300 items in whole groups, five modalities, under 2 MB.

calmrl-lab extract --dataset openmoji --out stores/openmoji.zarr
python tests/data/make_small_store.py stores/openmoji.zarr tests/data/openmoji-small.zarr
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from calmrl_lab.store import FeatureStore, offsets_of, write_store

SIZES = {"train": 180, "validation": 45, "test": 75}
LARGEST_GROUP = 8  # the 133 people with and without a profession would be half of the store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="store with all emoji")
    parser.add_argument("out", type=Path, help="store to write; replaced if it is there")
    given = parser.parse_args()
    print(make(FeatureStore.open(given.source), given.out))


def make(source: FeatureStore, out: Path) -> Path:
    """Write the chosen items of `source` to `out`; the same bytes every time."""
    kept = np.sort(np.concatenate([_choose(source, split, size) for split, size in SIZES.items()]))
    features, offsets = {}, {}
    for column, name in enumerate(source.modalities):
        starts = source.offsets(name)
        features[name] = np.concatenate([source.features(name)[starts[i] : starts[i + 1]] for i in kept])
        offsets[name] = offsets_of(np.diff(starts)[kept])
        assert ((np.diff(offsets[name]) > 0) == source.mask[kept, column]).all()
    return write_store(
        out,
        dataset=source.dataset,
        modalities=source.specs,
        ids=source.ids[kept],
        split=source.split[kept],
        group=source.group[kept],
        labels={name: values[kept] for name, values in source.labels.items()},
        features=features,
        offsets=offsets,
        reason=source.reason[kept],
        licence=source.licence,
        attribution=source.attribution,
        provenance={"made_by": "tests/data/make_small_store.py", "from_digest": source.digest},
        overwrite=True,
    )


def _choose(source: FeatureStore, split: str, size: int) -> np.ndarray:
    """Item numbers of whole groups, drawn in an order that depends on their names only, until there are `size`."""
    groups, counts = np.unique(source.group[source.split == split], return_counts=True)
    chosen: list[str] = []
    room = size
    for index in sorted(range(len(groups)), key=lambda i: hashlib.sha256(groups[i].encode()).digest()):
        if counts[index] <= min(room, LARGEST_GROUP):
            chosen.append(str(groups[index]))
            room -= int(counts[index])
    return np.flatnonzero(np.isin(source.group, chosen))


if __name__ == "__main__":
    main()
