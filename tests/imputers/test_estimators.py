"""Imputers as estimators of scikit-learn: parameters, clones, pipelines, lists and dicts of arrays, NaN rows and masks."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import PPCA, Mean, Ridge, imputers

NAMES = [name for name in imputers if imputers.get(name).__module__.startswith("calmrl_lab.")]
SMALL = {name: {"latent_dim": 2} for name in ("ppca", "ppca-student", "ppca-mixture")}


@pytest.fixture
def gaps():
    """Three related modalities as a dict, NaN rows for gaps, and the mask."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=(60, 2))
    arrays = {
        name: common @ generator.normal(size=(2, d)) + 0.1 * generator.normal(size=(60, d))
        for name, d in zip("abc", (4, 3, 5), strict=True)
    }
    mask = np.ones((60, 3), dtype=bool)
    mask[np.arange(0, 60, 3), np.arange(20) % 3] = False
    return {name: np.where(mask[:, [j]], values, np.nan) for j, (name, values) in enumerate(arrays.items())}, mask


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_options(name):
    imputer = imputers.create(name)
    assert imputer.get_params() == imputer.options()
    twin = clone(imputer)
    assert type(twin) is type(imputer)
    assert twin.get_params() == imputer.get_params()
    assert imputer.set_params(**imputer.get_params()) is imputer
    with pytest.raises(ValueError, match="has no parameter 'nonsense'"):
        imputer.set_params(nonsense=1)


@pytest.mark.filterwarnings("ignore:ParameterError occurred during set_params")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_get_params_invariance",
        "check_set_params",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
    ],
)
def test_checks_of_scikit_learn_that_need_no_table_of_numbers(name, check):
    if check == "check_no_attributes_set_in_init" and len(vars(imputers.create(name))) > len(
        imputers.create(name).get_params()
    ):
        pytest.skip("what is learned is declared beside the options")
    getattr(estimator_checks, check)(name, imputers.create(name))


def test_a_parameter_that_makes_no_sense_changes_nothing():
    imputer = PPCA(latent_dim=4)
    with pytest.raises(ValueError, match="latent_dim is -1"):
        imputer.set_params(ridge=1.0, latent_dim=-1)
    assert (imputer.latent_dim, imputer.ridge) == (4, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppca", "ppca-student", "ppca-mixture", "ridge", "mean", "knn", "zero"])
def test_nan_rows_masks_lists_and_dicts_say_the_same(name, gaps):
    arrays, mask = gaps
    options = SMALL.get(name, {})
    by_mask = imputers.create(name, **options).fit(list(arrays.values()), mask).impute(list(arrays.values()), mask)
    by_name = imputers.create(name, **options).fit_transform(arrays)
    by_place = imputers.create(name, **options).fit_transform(list(arrays.values()))
    masked = imputers.create(name, **options).fit_transform(
        {n: np.nan_to_num(v, nan=7.0) for n, v in arrays.items()}, mask=mask
    )
    assert list(by_name) == list("abc")
    for j, key in enumerate("abc"):
        for other in (by_name[key], by_place[j], masked[key]):
            np.testing.assert_allclose(other, by_mask[j], atol=1e-10)
        np.testing.assert_array_equal(by_name[key][mask[:, j]], arrays[key][mask[:, j]])


def test_a_dict_may_lack_a_modality_and_come_in_any_order(gaps):
    arrays, _ = gaps
    imputer = Ridge().fit(arrays)
    check_is_fitted(imputer)
    without = imputer.transform({"c": arrays["c"], "a": arrays["a"]})
    explicit = imputer.transform({**arrays, "b": np.full_like(arrays["b"], np.nan)})
    none = imputer.transform([arrays["a"], None, arrays["c"]])
    assert list(without) == list("abc")
    for j, key in enumerate("abc"):
        np.testing.assert_array_equal(without[key], explicit[key])
        np.testing.assert_array_equal(none[j], explicit[key])


def test_tensors_stay_tensors(gaps):
    arrays, _ = gaps
    filled = PPCA(latent_dim=2).fit_transform({name: torch.from_numpy(values).float() for name, values in arrays.items()})
    assert all(value.dtype == torch.float32 and not value.isnan().any() for value in filled.values())


def test_pipelines(gaps):
    arrays, _ = gaps
    classes = (np.nan_to_num(arrays["a"])[:, 0] > 0).astype(int)
    # FunctionTransformer looks at the first entry by its place, so it takes lists.
    pipeline = make_pipeline(PPCA(latent_dim=2), FunctionTransformer(np.hstack), LogisticRegression())
    listed = list(arrays.values())
    assert pipeline.fit(listed, classes).score(listed, classes) > 0.8
    pipeline.set_params(ppca__latent_dim=1)
    assert clone(pipeline).get_params()["ppca__latent_dim"] == 1
    assert "PPCA" in repr(pipeline)
    assert "PPCA" in pipeline._repr_html_()
    alone = Pipeline([("impute", Mean())])
    assert not any(np.isnan(values).any() for values in alone.fit_transform(arrays).values())


def test_fitting_again_forgets_names_and_order(gaps):
    arrays, _ = gaps
    imputer = Mean().fit(arrays).fit(dict(reversed(arrays.items())))
    assert imputer.modalities == ("c", "b", "a")
    assert imputer.dims == (5, 3, 4)


def test_rows_of_masked_arrays_are_gaps(gaps):
    arrays, _ = gaps
    hidden = [np.ma.array(np.nan_to_num(rows), mask=np.isnan(rows)) for rows in arrays.values()]
    for one, other in zip(Mean().fit_transform(hidden), Mean().fit_transform(list(arrays.values())), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_makes_no_sense_is_one_sentence(gaps):
    arrays, mask = gaps
    fitted = Mean().fit(arrays)
    index = [f"i{number}" for number in range(60)]
    frames = {"a": pd.DataFrame(arrays["a"], index), "b": pd.DataFrame(arrays["b"], index[::-1])}
    for call, message in (
        (lambda: Mean().transform(arrays), "imputer 'mean' has not been fitted"),
        (lambda: fitted.transform({**arrays, "d": arrays["a"]}), "was not fitted on modality 'd'"),
        (lambda: fitted.transform(dict(reversed(arrays.items())), mask), "columns in the order that was fitted: a, b, c"),
        (lambda: Mean().fit(list(arrays.values())).transform(arrays), "fitted on a list, so it knows no names"),
        (lambda: Mean().fit([arrays["a"], None]), "a modality is None, so its dimension is not known"),
        (lambda: Mean().fit([arrays["a"], arrays["b"][:5]]), r"the arrays have shapes \[60, 4\], \[5, 3\]"),
        (lambda: Mean().fit(frames), "'a' and 'b' have different indexes, so their rows are not the same items"),
        (lambda: Mean().fit(list(frames.values())), "'number 0' and 'number 1' have different indexes"),
        (lambda: Mean().fit(np.ones((60, 5))), r"one array \[60, 5\] was given, expected a list \(or dict\)"),
        (lambda: Mean().fit(frames["a"]), r"one array \[60, 4\] was given"),
        (lambda: Mean().fit([]), "no embeddings were given"),
        (lambda: Mean().fit({"a": arrays["a"], "b": np.full((60, 2), np.nan)}), "modality 'b' is never observed"),
        (lambda: Mean().fit({"a": np.array([[1.0, np.nan]] * 3)}), "modality 'a' hold NaN values at observed row 0"),
    ):
        with pytest.raises(CalmrlError, match=message):
            call()


def test_scikit_learn_is_not_imported_before_it_asks():
    code = "import sys, calmrl_lab.imputers.base; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
