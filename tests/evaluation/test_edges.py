"""Small and strange stores through every command: two modalities, one item, items that show nothing, several captions, no labels."""

import json

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import ModalitySpec, write_store
from calmrl_lab.training.train import train_heads


def strange_store(path, names, test=15, empty=0, captions=1, labels=True, ids=None):
    """Invented items of a common vector each: 45 to learn from, `test` to score, the last `empty` of which show nothing."""
    rng, n = np.random.default_rng(0), 45 + test
    common = rng.normal(size=(n, 8))
    mask = rng.random((n, len(names))) < 0.7
    mask[~mask.any(axis=1) | (test == 1), :2] = True
    mask[n - empty :] = False
    counts = [np.where(mask[:, j], captions if j == 0 else 1, 0) for j in range(len(names))]
    owners = [np.repeat(np.arange(n), count) for count in counts]
    features = {
        m: common[o] @ rng.normal(size=(8, 6)) + 0.3 * rng.normal(size=(len(o), 6)) for m, o in zip(names, owners, strict=True)
    }
    kinds = np.array(["" if i % 7 == 0 else f"kind {i % 3}" for i in range(n)])
    write_store(
        path, dataset="strange", modalities=[ModalitySpec(m, "given", "0" * 16, 6, "float16") for m in names],
        ids=ids or [f"é{i}" for i in range(n)], split=np.array(["train"] * 33 + ["validation"] * 12 + ["test"] * test),
        group=[f"g{i}" for i in range(n)], labels={"kind": kinds} if labels else {}, features=features,
        offsets={m: np.concatenate([[0], np.cumsum(c)]) for m, c in zip(names, counts, strict=True)},
        reason=np.where(mask, 0, np.where(mask.any(axis=1, keepdims=True), 1, 2)).astype(np.uint8), licence="none", attribution="none",
        provenance={},
    )  # fmt: skip
    return path


CASES = {
    "two modalities": {"names": ["text", "image"]},
    "one item": {"names": ["text", "image", "sound"], "test": 1},
    "items that show nothing": {"names": ["text", "image", "sound"], "empty": 3},
    "several captions": {"names": ["caption", "image", "sound"], "captions": 3},
    "no labels": {"names": ["text", "image"], "labels": False},
}


LONG = ("two modalities", "several captions")


@pytest.fixture(scope="module", params=[pytest.param(case, marks=[pytest.mark.slow] if case in LONG else []) for case in CASES])
def strange(request, tmp_path_factory):
    """(what is strange, the run of a calibrated model on it)."""
    folder = tmp_path_factory.mktemp("strange")
    store = strange_store(folder / "strange.zarr", **CASES[request.param])
    quick = {"epochs": 2, "dim": 8, "impute_options": {"latent_dim": 3}, "scenario": "random:0.3"}
    return request.param, train_heads(store, "calmrl", run=folder / "run", **quick)


def strictly(text):
    """JSON as every reader takes it: without NaN and infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("command", ["evaluate", "curves", "classify", "diagnose", "index"])
def test_every_command_ends_well_and_counts(strange, cli, tmp_path, command):
    case, run = strange
    words = [command, "--run", run.path]
    if command == "index":
        pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
        words += ["--out", tmp_path / "index"]
    if command == "curves":
        words += ["--query", run.summary["modalities"][0], "--scenario", "full", "--scenario", "random:0.5"]
    code, said, err = cli(*words)
    assert "Traceback" not in err
    if case == "no labels" and command == "classify":
        assert code == 2
        assert "has 0 labels that could be classified" in err.replace("\n", " ")
        return
    assert code == 0, err
    strictly(cli(*words, "--json")[1])
    if case == "items that show nothing":
        told = {
            "evaluate": "3 of 15 items show no modality at all",
            "curves": "show nothing: items without any modality, which rank last",
            "index": "3 items show none of these and were left out",
        }
        assert told.get(command, "") in said


def test_a_gap_in_the_query_side_is_counted(strange, cli):
    case, run = strange
    if case == "one item":
        pytest.skip("the one item is complete")
    asked = run.summary["modalities"][0]
    rows = strictly(cli("curves", "--run", run.path, "--query", asked, "--scenario", "full", "--json")[1])["curves"]
    answered = next(row for row in rows if row["side"] == "query" and row["scorer"] == "centroid")
    assert answered["without_positive"] > 0
    assert answered["queries"] + answered["without_positive"] == 15


def test_an_id_twice_is_refused_by_the_store(tmp_path):
    with pytest.raises(CalmrlError, match="ids must be unique: 'a' is at positions 0 and 1"):
        strange_store(tmp_path / "twice.zarr", ["text", "image"], ids=["a", "a", *(f"i{i}" for i in range(58))])
