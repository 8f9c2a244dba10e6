"""`calmrl-lab impute`: gaps filled and marked, observed rows copied, requests that make no sense refused with nothing
written."""

import json

import numpy as np
import pytest

from calmrl_lab.completion.fill_store import complete_store
from calmrl_lab.completion.held_out_check import Check
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, ModalitySpec, Reason, offsets_of, verify, write_store

N = 80


@pytest.fixture
def gappy(tmp_path):
    """Two related modalities and a third, captions several per item, one item that failed altogether."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 3))
    mask = rng.random((N, 3)) < 0.7
    mask[~mask.any(axis=1), 0] = True
    mask[7] = False
    counts = mask.astype(int)
    counts[:, 2] *= rng.integers(1, 4, size=N)
    dims = (6, 5, 4)
    features = {}
    for j, (name, d) in enumerate(zip(("vision", "audio", "caption"), dims, strict=True)):
        rows = np.repeat(latent, counts[:, j], axis=0) @ rng.normal(size=(3, d)) + 0.2 * rng.normal(
            size=(counts[:, j].sum(), d)
        )
        features[name] = rows.astype(np.float32)
    reason = np.where(mask, Reason.OBSERVED, Reason.ABSENT).astype(np.uint8)
    reason[7] = Reason.FAILED
    return write_store(
        tmp_path / "gappy.zarr",
        dataset="made up",
        modalities=[
            ModalitySpec(n, "none", "0", d, "float32") for n, d in zip(("vision", "audio", "caption"), dims, strict=True)
        ],
        ids=[f"i{i}" for i in range(N)],
        split=["train"] * 60 + ["test"] * 20,
        labels={"kind": ["a", "b"] * (N // 2)},
        features=features,
        offsets={n: offsets_of(counts[:, j]) for j, n in enumerate(("vision", "audio", "caption"))},
        reason=reason,
        licence="CC0",
        attributes={"note": "kept"},
    )


def test_gaps_are_filled_and_marked_and_the_rest_is_copied(gappy, tmp_path):
    before = FeatureStore.open(gappy)
    done = complete_store(before, tmp_path / "full.zarr", "ppca", {"latent_dim": 3})
    after = FeatureStore.open(done.path)
    assert verify(done.path) == []
    assert done.empty_items == 1
    shows = before.mask.any(axis=1)
    assert after.mask[shows].all()
    assert not after.mask[7].any()
    assert (after.reason[7] == Reason.FAILED).all()
    assert after.attributes["note"] == "kept"
    assert after.attributes["imputation"]["imputer"] == "ppca"
    assert after.attributes["imputation"]["of"] == before.digest
    assert (after.labels["kind"] == before.labels["kind"]).all()
    for j, name in enumerate(before.modalities):
        filled = ~before.mask[:, j] & shows
        assert ((after.labels[f"imputed {name}"] == "yes") == filled).all()
        errors = after.labels[f"relative error of {name}"]
        assert (errors[~filled] == "").all()
        assert all(0 < float(e) < 1.5 for e in errors[filled])
        for i in np.flatnonzero(before.mask[:, j]):
            old = before.features(name)[before.offsets(name)[i] : before.offsets(name)[i + 1]]
            new = after.features(name)[after.offsets(name)[i] : after.offsets(name)[i + 1]]
            assert (old == new).all()
        assert (np.diff(after.offsets(name))[filled] == 1).all()


def test_filled_rows_are_those_of_the_imputer(gappy, tmp_path):
    from calmrl_lab.imputers.mean import Mean

    before = FeatureStore.open(gappy)
    after = FeatureStore.open(complete_store(gappy, tmp_path / "full.zarr", Mean()).path)
    train = (before.split == "train") & before.mask[:, 0]
    mean = before.features("vision")[before.offsets("vision")[:-1][train]].mean(axis=0)
    filled = np.flatnonzero(after.labels["imputed vision"] == "yes")
    np.testing.assert_allclose(
        after.features("vision")[after.offsets("vision")[filled]], np.tile(mean, (len(filled), 1)), rtol=1e-5
    )


@pytest.mark.parametrize("standardise", [False, True])
def test_units_come_back(gappy, tmp_path, standardise):
    done = complete_store(gappy, tmp_path / "full.zarr", "ridge", standardise=standardise)
    after = FeatureStore.open(done.path)
    filled = after.features("audio")[after.offsets("audio")[:-1][after.labels["imputed audio"] == "yes"]]
    observed = after.features("audio")[after.offsets("audio")[:-1][after.labels["imputed audio"] == "no"][:6]]
    assert 0.3 < filled.std() / observed.std() < 3
    assert done.modalities[0]["relative_error"] is None


def test_only_some_modalities(gappy, tmp_path):
    done = complete_store(gappy, tmp_path / "full.zarr", "mean", modalities=["vision", "audio"])
    before, after = FeatureStore.open(gappy), FeatureStore.open(done.path)
    assert (after.mask[:, 2] == before.mask[:, 2]).all()
    assert after.mask[before.mask[:, :2].any(axis=1), :2].all()
    assert "imputed caption" not in after.labels


def test_the_command(gappy, tmp_path, cli):
    out = tmp_path / "full.zarr"
    code, text, _ = cli("impute", "--store", gappy, "--out", out, "--set", "folds=3")
    assert code == 0
    assert "audio" in text
    assert "1 items show nothing" in text
    code, text, _ = cli("impute", "--store", gappy, "--out", out, "--method", "mean", "--overwrite", "--json")
    assert code == 0
    payload = json.loads(text)
    assert payload["imputer"] == "mean"
    assert sum(row["filled"] for row in payload["modalities"]) > 20
    code, text, _ = cli(
        "impute", "--store", out, "--out", tmp_path / "again.zarr", "--method", "mean", "--modalities", "vision,audio"
    )
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "pcpa"], "unknown imputer 'pcpa'"),
        (["--method", "none"], "fills no gaps"),
        (["--modalities", "vision,smell"], "has no modality 'smell'"),
        (["--fit-split", "validation"], "no items in split 'validation'"),
        (["--set", "latent=3"], "imputer 'ppca-auto'.*latent"),
        (["--set", "latent_dim=0"], "latent_dim is 0"),
    ],
)
def test_requests_that_make_no_sense(gappy, tmp_path, cli, words, said):
    import re

    code, _, err = cli("impute", "--store", gappy, "--out", tmp_path / "full.zarr", *words)
    assert code == 2
    assert re.search(said, " ".join(err.split()))
    assert not (tmp_path / "full.zarr").exists()


def test_an_existing_store_is_not_replaced_unasked_and_that_is_said_before_the_work(gappy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("calmrl_lab.completion.fitted_store.prepare", lambda *_: pytest.fail("fitted first"))
        with pytest.raises(CalmrlError, match="exists already"):
            complete_store(gappy, gappy, "mean")
    assert FeatureStore.open(gappy).dataset == "made up"
    # Asked for, a store may take its own place.
    complete_store(gappy, gappy, "mean", overwrite=True)
    assert verify(gappy) == []
    assert FeatureStore.open(gappy).attributes["imputation"]["imputer"] == "mean"


def test_filled_values_stay_within_the_dtype_of_the_store(tmp_path):
    # Real features near the end of float16, and a relation that points beyond it.
    rng = np.random.default_rng(0)
    latent = rng.uniform(-1, 1, size=(60, 1))
    mask = np.ones((60, 2), dtype=bool)
    mask[50:, 1], latent[50:] = False, 3.0
    features = {"a": (2e4 * latent * np.ones(4)).astype(np.float16), "b": (6e4 * latent[:50] * np.ones(3)).astype(np.float16)}
    path = write_store(
        tmp_path / "large.zarr",
        dataset="large",
        modalities=[ModalitySpec("a", "none", "0", 4, "float16"), ModalitySpec("b", "none", "0", 3, "float16")],
        ids=[f"i{i}" for i in range(60)],
        split=["train"] * 50 + ["test"] * 10,
        features=features,
        offsets={name: offsets_of(mask[:, j].astype(int)) for j, name in enumerate("ab")},
        reason=np.where(mask, Reason.OBSERVED, Reason.ABSENT).astype(np.uint8),
        licence="CC0",
    )
    done = FeatureStore.open(complete_store(path, tmp_path / "full.zarr", "ridge").path)
    assert (np.asarray(done.features("b"))[50:] == np.finfo(np.float16).max).all()


def test_a_check_finds_promises_kept_and_broken(gappy):
    from calmrl_lab.completion.fitted_store import prepare
    from calmrl_lab.completion.held_out_check import check_on_held_out

    kept = check_on_held_out(prepare(gappy, "ppca", {"latent_dim": 3}, None, "train", False))
    assert 0.6 < kept.reliability.ratio < 1.6
    assert {row["modality"] for row in kept.modalities} == {"vision", "audio", "caption"}
    # 20 held-out items, each at most five times, three modalities of which at least one is shown.
    assert 0 < kept.reliability.count.sum() <= 20 * 5 * 2
    # As many latent dimensions as there are to have: noise next to nothing, promises far too good.
    broken = check_on_held_out(prepare(gappy, "ppca", {"latent_dim": 13}, None, "train", False))
    assert broken.reliability.ratio > 1.5 * kept.reliability.ratio


def test_a_check_on_a_single_item_is_json():
    from calmrl_lab.completion.reliability import reliability

    one = Check(1, reliability(np.array([1.0]), np.array([2.0])), [])
    text = json.dumps(one.payload(), allow_nan=False)
    assert json.loads(text)["bins"] == [{"count": 1.0, "predicted": 1.0, "real": 2.0, "standard_error": None}]


def test_every_checked_case_is_counted_once(small_store):
    from calmrl_lab.completion.fitted_store import prepare
    from calmrl_lab.completion.held_out_check import check_on_held_out

    # Only keywords are ever missing: one pattern of gaps, and as many cases as held-out items that have keywords.
    ready = prepare(small_store, "mean", {}, None, "train", False)
    column = ready.names.index("keywords")
    found = check_on_held_out(ready)
    assert found.items == found.reliability.count.sum() == (~ready.fitted & ready.mask[:, column]).sum()


def test_a_check_of_a_store_without_gaps_says_that_it_has_none(small_store):
    from calmrl_lab.completion.fitted_store import prepare
    from calmrl_lab.completion.held_out_check import check_on_held_out

    with pytest.raises(CalmrlError, match="shows some of vision and caption and lacks others"):
        check_on_held_out(prepare(small_store, "mean", {}, ["vision", "caption"], "train", False))


@pytest.mark.slow
def test_the_command_draws_predicted_against_real_errors(cli, gappy, tmp_path):
    asked = ["impute", "--store", gappy, "--method", "ppca", "--set", "latent_dim=3"]
    code, out, _ = cli(*asked, "--out", tmp_path / "a.zarr", "--check", "--figure", tmp_path / "f.svg")
    assert code == 0
    assert "real over predicted error" in out
    assert "real error" in (tmp_path / "f.svg").read_text()
    code, out, _ = cli(*asked, "--out", tmp_path / "b.zarr", "--check", "--json")
    assert json.loads(out)["check"]["bins"][0]["predicted"] > 0
    for wrong, message in (
        (["--figure", tmp_path / "f.svg"], "--check"),
        (["--check", "--figure", tmp_path / "nowhere" / "f.svg"], "there is no folder"),
        (["--check", "--method", "knn"], "predicts no error"),
        (["--check", "--fit-split", "test", "--modalities", "vision"], "nothing to check"),
    ):
        words = ["impute", "--store", gappy, "--out", tmp_path / "c.zarr", *wrong]
        code, _, err = cli(*words)
        assert code == 2
        assert message in err
    assert not (tmp_path / "c.zarr").exists()
