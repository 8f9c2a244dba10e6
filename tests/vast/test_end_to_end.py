"""The whole path on a tiny VAST release, real clips and real annotations: extract, train-heads, evaluate, report."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calmrl_lab.store import FeatureStore, Reason

_ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("CALMRL_TEST_DATA") or _ROOT.parent / "shared" / "data")
MODALITIES = ("vision", "audio", "caption", "subtitle")
TRAIN, TEST = 12, 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REAL / "media").is_dir(), reason="the real clips and annotations are not here (set CALMRL_TEST_DATA)"
    ),
]


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory):
    """A media folder in the documented layout: the first real annotations, each with one of four real clips.

    Of the test items one has no file, one a broken video, one sound without a video.
    """
    media = tmp_path_factory.mktemp("msrvtt")
    for name in ("annotations", "videos", "audios"):
        (media / name).mkdir()
    for name, count in (("unique_descs_ret_train.json", TRAIN), ("descs_ret_test.json", TEST)):
        rows = json.loads((REAL / "annotations" / "msrvtt" / name).read_text())[:count]
        (media / "annotations" / name).write_text(json.dumps(rows))
        for number, row in enumerate(rows):
            shutil.copy(REAL / "media" / f"video{number % 4 + 1}.mp4", media / "videos" / f"{row['video_id']}.mp4")
    test = [row["video_id"] for row in rows]
    # Odd items have extracted sound, two of the four files are AAC in MP4 by another name.
    for number in range(1, TEST, 2):
        shutil.copy(REAL / "media" / f"audio{number % 4 + 1}.mp3", media / "audios" / f"{test[number]}.mp3")
    (media / "videos" / f"{test[4]}.mp4").unlink()
    (media / "videos" / f"{test[5]}.mp4").unlink()
    (media / "videos" / f"{test[6]}.mp4").write_text("<html>Too many requests</html>")
    return media, test


@pytest.fixture(scope="module")
def store_path(msrvtt, weights, tmp_path_factory):
    from feature_extractors.extraction import extract

    out = tmp_path_factory.mktemp("stores") / "msrvtt.zarr"
    extract(
        "msrvtt",
        out,
        "vast-paper",
        msrvtt[0],
        weights,
        workers=1,
        device="cpu",
        block_size=8,
        max_failures=0.2,
        options={"validation": 0.3},
    )
    return out


def test_gaps_have_their_reasons(msrvtt, store_path):
    store = FeatureStore.open(store_path)
    _, test = msrvtt
    assert store.modalities == MODALITIES
    assert store.dims == {"vision": 32, "audio": 48, "caption": 32, "subtitle": 32}
    assert [split.replace("validation", "train") for split in store.split] == ["train"] * TRAIN + ["test"] * TEST
    assert list(store.split).count("validation") >= 2
    rows = {name: place for place, name in enumerate(store.ids)}
    reason = {name: dict(zip(MODALITIES, store.reason[rows[name]].tolist(), strict=True)) for name in test}
    gone, heard, broken = test[4], test[5], test[6]
    assert reason[gone]["vision"] == reason[gone]["audio"] == Reason.FAILED
    assert (reason[heard]["vision"], reason[heard]["audio"]) == (Reason.FAILED, Reason.OBSERVED)
    assert reason[broken]["vision"] == Reason.FAILED
    assert all(reason[name]["caption"] == Reason.OBSERVED for name in test)

    annotated = json.loads((REAL / "annotations" / "msrvtt" / "descs_ret_test.json").read_text())[:TEST]
    for row in annotated:
        expected = Reason.OBSERVED if row["subtitle"].strip() else Reason.ABSENT
        assert reason[row["video_id"]]["subtitle"] == expected
    assert_array_equal(store.mask, store.reason == Reason.OBSERVED)
    codes = {(record["id"], record["modality"]): record["code"] for record in store.failures()}
    assert codes[gone, "vision"] == codes[gone, "audio"] == codes[heard, "vision"] == "not_found"
    assert codes[broken, "vision"] == codes[broken, "audio"] == "not_media"


def test_features_are_what_the_encoders_say_and_heads_are_stored(msrvtt, store_path, weights, tensors):
    from feature_extractors.datasets import datasets
    from feature_extractors.encoders import encoders

    media, test = msrvtt
    store = FeatureStore.open(store_path)
    dataset = datasets.get("msrvtt")
    items = {item.id: item for item in dataset(media).manifest().items}
    for modality, name in dataset.presets["vast-paper"].items():
        encoder = encoders.get(name)(weights=weights)
        owner = next(i for i in test if store.mask[list(store.ids).index(i), store.modalities.index(modality)])
        place = store.offsets(modality)[list(store.ids).index(owner)]
        expected = encoder.encode([encoder.prepare(items[owner].media[modality][0])])[0]
        assert_allclose(store.features(modality)[place], expected, atol=2e-3, rtol=2e-3)
        assert next(spec.fingerprint for spec in store.specs if spec.name == modality) == encoder.fingerprint
    for letter in "vats":
        assert_allclose(store.heads[f"contra_head_{letter}"], tensors[f"contra_head_{letter}.linear.weight"].numpy())
    assert store.heads["contra_head_vas.weight"].shape == (16, 32 + 48 + 32)


def test_the_same_clip_has_the_same_features(store_path):
    store = FeatureStore.open(store_path)
    vision = store.features("vision")
    # Training items 0, 4 and 8 are copies of one clip; 1 is another.
    assert_array_equal(vision[0], vision[4])
    assert np.abs(vision[0].astype(np.float32) - vision[1]).max() > 1e-3


def test_training_starts_from_the_released_heads_and_reports(store_path, cli, tmp_path, tensors):
    from calmrl_lab.runs.run import Run

    runs = tmp_path / "runs"
    for name, extra in (("zero-shot", ("--epochs", "0")), ("trained", ("--epochs", "2"))):
        words = ("--objective", "pmrl", "--impute", "none", "--modalities", "vision,audio,caption", "--device", "cpu")
        code, _, said = cli("train-heads", "--store", store_path, *words, *extra, "--set", "init=stored", "--run", runs / name)
        assert code == 0, said
        code, _, said = cli("evaluate", "--run", runs / name)
        assert code == 0, said
    heads = Run.open(runs / "zero-shot").model().projection
    assert_allclose(heads.maps[0].weight.detach().numpy(), tensors["contra_head_v.linear.weight"].numpy())
    assert Run.open(runs / "trained").summary["epochs"] == 2
    code, _, said = cli("report", "--runs", runs, "--out", tmp_path / "report")
    assert code == 0, said
    assert (tmp_path / "report" / "index.html").stat().st_size > 1000


def test_gram_drops_what_has_no_extracted_sound(msrvtt, weights, tmp_path):
    from feature_extractors.extraction import extract

    media, test = msrvtt
    out = tmp_path / "gram.zarr"
    options = {"splits": "test"}
    extract("msrvtt", out, "gram-compat", media, weights, workers=1, device="cpu", max_failures=0.5, options=options)
    store = FeatureStore.open(out)
    assert list(store.ids) == [name for number, name in enumerate(test) if number % 2]
    assert store.dataset == "msrvtt (captions first; items with an audio file)"
    assert store.attributes["preset"] == "gram-compat"
    # Completing the store needs no second word on how it was made.
    extract("msrvtt", out, None, media, weights, workers=1, device="cpu", max_failures=1, options=options, retry_failed=True)
    assert list(FeatureStore.open(out).ids) == list(store.ids)
    assert FeatureStore.open(out).attributes["preset"] == "gram-compat"


@pytest.fixture(scope="module")
def kept(msrvtt, store_path, weights):
    """The store of `store_path` once more, with the condition tokens of its test items beside it."""
    from feature_extractors.rerank_tokens import keep_test_tokens

    out = store_path.with_name("kept.zarr")
    shutil.copytree(store_path, out)
    keep_test_tokens("msrvtt", out, None, msrvtt[0], weights, device="cpu", options={"validation": 0.3})
    return out


def test_kept_tokens_re_rank_a_trained_run(msrvtt, store_path, weights, cli, tmp_path):
    from calmrl_lab.runs.run import Run
    from feature_extractors.encoders.vast.rerank.token_file import TokenFile, tokens_folder

    media, test = msrvtt
    run = tmp_path / "run"
    words = ("--store", store_path, "--objective", "pmrl", "--impute", "none", "--epochs", "0", "--run", run)
    code, _, said = cli("train-heads", *words, "--modalities", "vision,audio,caption", "--device", "cpu")
    assert code == 0, said
    code, _, said = cli("evaluate", "--run", run, "--rerank", "itm", "--weights", weights)
    assert code == 2
    assert "--save-rerank-tokens" in said

    asked = ("extract", "--dataset", "msrvtt", "--out", store_path, "--media", media, "--weights", weights)
    code, _, said = cli(*asked, "--save-rerank-tokens", "--set", "validation=0.3", "--device", "cpu")
    assert code == 0, said
    assert "condition tokens of 10 test items kept, 0 have none" in said
    tokens = TokenFile(tokens_folder(store_path))
    whole = tokens.condition(tokens.place(test[0]))
    assert len(whole) == 16 * 257 + 256 + 70, "16 frames, one slice, a padded subtitle"

    code, told, said = cli("evaluate", "--run", run, "--rerank", "itm", "--weights", weights, "--top", 3)
    assert code == 0, said
    assert "before and after matching" in told
    frame = Run.open(run).read_frame("rerank.parquet")
    assert set(frame["scorer"]) == {"joint", "joint+itm"}, (
        "PMRL compares by VAST's fused heads, and the store brings them in the dimension of its embeddings"
    )
    counts = frame.groupby(["query", "scorer"]).size()
    store = FeatureStore.open(store_path)
    findable = store.mask[store.split == "test"][:, :2].any(axis=1).sum()
    assert findable < TEST
    assert (counts == findable).all(), "items without vision and sound can neither be found nor ask"
    assert ((frame["greater"] >= 0) & (frame["greater"] < frame["candidates"])).all()
    code, _, said = cli("report", "--runs", run.parent, "--out", tmp_path / "report")
    assert code == 0, said
    assert (tmp_path / "report" / "tables" / "rerank.csv").read_text().count("joint+itm") == 2
    for words, sentence in (
        (("--rerank", "itn", "--weights", weights), "unknown re-ranking 'itn'"),
        (("--rerank", "itm"), "needs VAST's weights"),
    ):
        code, _, said = cli("evaluate", "--run", run, *words)
        assert (code, sentence in said) == (2, True)


def test_tokens_belong_to_the_store_as_it_is(msrvtt, kept, weights, tmp_path):
    """Captions of another choice are refused; a store completed afterwards no longer goes with its tokens."""
    from calmrl_lab.errors import CalmrlError
    from feature_extractors.encoders.vast.rerank.token_file import TokenFile, tokens_folder
    from feature_extractors.extraction import extract
    from feature_extractors.rerank_tokens import keep_test_tokens, kept_matching

    media, test = msrvtt
    mine = tmp_path / "media"
    shutil.copytree(media, mine)
    store = tmp_path / "completed.zarr"
    shutil.copytree(kept, store)
    shutil.copytree(tokens_folder(kept), tokens_folder(store))
    kept_matching(FeatureStore.open(store), weights)
    annotations = mine / "annotations" / "descs_ret_test.json"
    rows = json.loads(annotations.read_text())
    annotations.write_text(json.dumps([{**row, "desc": [row["desc"], "a dog"]} for row in rows]))
    options = {"validation": 0.3}
    with pytest.raises(CalmrlError, match=f"item '{test[0]}' has 1 captions in .*, and 2 now"):
        keep_test_tokens("msrvtt", store, None, mine, weights, device="cpu", options=options)

    annotations.write_text(json.dumps(rows))
    shutil.copy(mine / "videos" / f"{test[0]}.mp4", mine / "videos" / f"{test[4]}.mp4")
    extract("msrvtt", store, None, mine, weights, workers=1, device="cpu", max_failures=1, options=options, retry_failed=True)
    with pytest.raises(CalmrlError, match="are not those of .* as it is now"):
        kept_matching(FeatureStore.open(store), weights)
    keep_test_tokens("msrvtt", store, None, mine, weights, device="cpu", options=options, overwrite=True)
    kept_matching(FeatureStore.open(store), weights)
    before, after = (TokenFile(tokens_folder(path)) for path in (kept, store))
    assert test[4] in after.ids
    assert len(after.condition(after.place(test[4]))) > len(
        before.condition(before.place(test[4])) if test[4] in before.ids else []
    )


def test_tokens_of_fewer_modalities_are_refused(msrvtt, kept, weights):
    from calmrl_lab.errors import CalmrlError
    from feature_extractors.rerank_tokens import keep_test_tokens

    fewer = "vision=vast/eva-g-16-crop,caption=vast/bert-caption"
    with pytest.raises(
        CalmrlError, match="has the modalities vision, audio, caption, subtitle; the request is for vision, caption"
    ):
        keep_test_tokens("msrvtt", kept, fewer, msrvtt[0], weights, device="cpu", options={"validation": 0.3})


def test_weights_of_another_model_do_not_re_rank(msrvtt, kept, tensors, make_weights):
    from calmrl_lab.errors import CalmrlError
    from feature_extractors.rerank_tokens import keep_test_tokens, kept_matching

    other = make_weights({name: value * 1.5 for name, value in tensors.items()}, "other")
    with pytest.raises(CalmrlError, match="and this run would add some of"):
        keep_test_tokens("msrvtt", kept, None, msrvtt[0], other, device="cpu", options={"validation": 0.3})
    with pytest.raises(CalmrlError, match="not the weights that"):
        kept_matching(FeatureStore.open(kept), other)
