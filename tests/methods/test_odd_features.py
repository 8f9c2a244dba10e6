"""Every method on features that are hardly features: trained, evaluated and searched with gaps, or refused in one sentence; no score that is no number.

Every method meets a fifth of the features, and all features meet some method; with CALMRL_LAB_ALL_ODD_FEATURES=1 in the environment, every method meets all.
"""

import os

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.missing_curves import run_curves
from calmrl_lab.methods import method
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.train import train_heads

N = 60


def views(count, dim):
    random = np.random.default_rng(0)
    latent = random.standard_normal((N, 4))
    return [latent @ random.standard_normal((4, dim)) + 0.3 * random.standard_normal((N, dim)) for _ in range(count)]


def some_mask(count):
    mask = np.random.default_rng(1).random((N, count)) > 0.25
    mask[mask.sum(axis=1) < 2] = True
    return mask


def one_item_per_pattern():
    """The patterns of six modalities, one item for each of the first sixty."""
    return np.array([[number >> place & 1 for place in range(6)] for number in range(1, N + 1)], dtype=bool)


def with_missing_rows():
    found = views(3, 8)
    found[1][5], found[2][7:9] = np.nan, np.nan
    return found


# name -> (features of every modality, mask; None: rows that are NaN are gaps)
FEATURES = {
    "times 1e30": lambda: ([rows * 1e30 for rows in views(3, 8)], some_mask(3)),
    "times 1e-42": lambda: ([rows * 1e-42 for rows in views(3, 8)], some_mask(3)),
    "of every size": lambda: ([rows * size for rows, size in zip(views(3, 8), (1e30, 1e-42, 1.0), strict=True)], some_mask(3)),
    "copies": lambda: (views(1, 8) * 3, some_mask(3)),
    "constant": lambda: ([np.full((N, 8), 0.5)] * 3, some_mask(3)),
    "zero": lambda: ([np.zeros((N, 8))] * 3, some_mask(3)),
    "one constant": lambda: ([*views(2, 8), np.full((N, 8), 0.5)], some_mask(3)),
    "more modalities than dimensions": lambda: (views(5, 3), some_mask(5)),
    "one item per pattern": lambda: (views(6, 8), one_item_per_pattern()),
    "rows of NaN": lambda: (with_missing_rows(), None),
}


ALL = bool(os.environ.get("CALMRL_LAB_ALL_ODD_FEATURES"))
MEETINGS = [
    (name, features)
    for row, name in enumerate(method.names())
    for column, features in enumerate(FEATURES)
    if ALL or (row + column) % 5 == 0
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")

    def made(name):
        path = folder / f"{name}.zarr"
        if path.exists():
            return FeatureStore.open(path)
        rows, mask = FEATURES[name]()
        arrays = {f"m{place}": part.astype(np.float32) for place, part in enumerate(rows)}
        return FeatureStore.from_arrays(arrays, mask=mask, path=path)

    return made


def refused(store, name, folder):
    """The error that ended training, evaluation or curves by method `name`; None if all three gave numbers."""
    try:
        run = train_heads(store, name, run=folder / "run", epochs=1, seed=0)
        found = evaluate(run)
        curves = run_curves(run, scenarios=["random:0.5"], queries=store.modalities[:1])
    except CalmrlError as error:
        return error
    for frame in (found.scores, found.imputation, found.anchors, curves):
        if frame is not None:
            # Of a pattern that no validation item is complete for, nothing is predicted.
            numbers = frame.select_dtypes("number").drop(columns="predicted_error", errors="ignore")
            assert np.isfinite(numbers.to_numpy(dtype=float)).all(), (name, numbers.columns[~np.isfinite(numbers).all()])
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("name", "features"), MEETINGS)
def test_a_score_or_a_sentence(stores, tmp_path, name, features):
    error = refused(stores(features), name, tmp_path)
    assert error is None or "\n" not in error.message


@pytest.mark.parametrize(
    "features",
    [
        "copies",
        *(
            pytest.param(features, marks=pytest.mark.slow)
            for features in ("times 1e30", "times 1e-42", "one item per pattern", "rows of NaN")
        ),
    ],
)
def test_ordinary_methods_are_not_refused(stores, tmp_path, features):
    assert refused(stores(features), "clip", tmp_path) is None


def test_curves_of_a_run_that_compares_by_canonical_variates(stores, tmp_path):
    assert refused(stores("copies"), "cca", tmp_path) is None


def test_why_nothing_can_be_compared(stores, tmp_path):
    error = refused(stores("constant"), "cca", tmp_path)
    assert error.hint == "features of m0, m1, m2 are the same for every item, so that nothing tells items apart"
