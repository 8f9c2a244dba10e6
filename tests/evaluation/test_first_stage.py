"""The first stage of re-ranking: VAST's fused heads against a direct computation, the system's own score elsewhere, both directions."""

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.reranking.first_stage import first_stage, joint_vectors
from calmrl_lab.evaluation.reranking.rerank import rerank_run
from calmrl_lab.store import FeatureStore, ModalitySpec, write_store
from calmrl_lab.training.train import train

DIMS = {"vision": 7, "audio": 5, "subtitle": 4, "caption": 4}
DIM = 6
TAKES = {"v": ["vision"], "a": ["audio"], "s": ["subtitle"], "t": ["caption"]}
JOINT = {"va": ["vision", "audio"], "vs": ["vision", "subtitle"], "vas": ["vision", "audio", "subtitle"]}


def random_heads(seed=0):
    draw = np.random.default_rng(seed)
    heads = {f"contra_head_{k}": draw.normal(size=(DIM, DIMS[names[0]])).astype(np.float32) for k, names in TAKES.items()}
    for k, names in JOINT.items():
        heads[f"contra_head_{k}.weight"] = draw.normal(size=(DIM, sum(DIMS[n] for n in names))).astype(np.float32)
        heads[f"contra_head_{k}.bias"] = draw.normal(size=DIM).astype(np.float32)
    return heads


def fused_by_hand(features, shown, heads):
    """One item: the head of exactly what it shows, as VAST's code names it; sound alone where it shows sound and subtitle."""
    letters = "".join(letter for letter, name in (("v", "vision"), ("a", "audio"), ("s", "subtitle")) if shown[name])
    if letters in JOINT:
        joined = np.concatenate([features[name] for name in JOINT[letters]])
        out = heads[f"contra_head_{letters}.weight"].astype(float) @ joined + heads[f"contra_head_{letters}.bias"]
    else:
        out = heads[f"contra_head_{letters[0]}"].astype(float) @ features[TAKES[letters[0]][0]]
    return out / np.linalg.norm(out)


def test_fused_heads_against_a_direct_computation():
    draw, heads = np.random.default_rng(1), random_heads()
    names = ("vision", "audio", "subtitle")
    masks = np.array([[bool(n >> m & 1) for m in range(3)] for n in range(8)] * 2)
    features = {name: draw.normal(size=(16, DIMS[name])) for name in names}
    vectors, serves = joint_vectors(
        {name: torch.from_numpy(values) for name, values in features.items()},
        {name: torch.from_numpy(masks[:, m]) for m, name in enumerate(names)},
        heads,
    )
    assert serves.tolist() == masks.any(axis=1).tolist()
    for i, row in enumerate(masks):
        if row.any():
            expected = fused_by_hand({n: v[i] for n, v in features.items()}, dict(zip(names, row, strict=True)), heads)
            np.testing.assert_allclose(vectors[i].numpy(), expected, atol=1e-12)


def test_a_head_that_the_store_does_not_bring():
    heads = {name: value for name, value in random_heads().items() if "_va." not in name}
    features = {"vision": torch.zeros(2, 7), "audio": torch.zeros(2, 5)}
    mask = dict.fromkeys(features, torch.ones(2, dtype=torch.bool))
    with pytest.raises(CalmrlError, match="brings no head 'contra_head_va'"):
        joint_vectors(features, mask, heads)
    with pytest.raises(CalmrlError, match="fused heads take vision, audio, subtitle; items have pix"):
        joint_vectors({"pix": torch.zeros(2, 7)}, {"pix": torch.ones(2, dtype=torch.bool)}, heads)


@pytest.mark.parametrize(
    ("objective", "dim", "stage"),
    [
        ("gram", DIM, "volume"),
        ("triangle", DIM, "area"),
        ("vast", DIM, "fused"),
        ("symile", DIM, "multilinear"),
        ("none", DIM, "joint"),
        ("calmrl", DIM, "joint"),
        ("pmrl", DIM + 1, "centroid"),
    ],
)
def test_every_system_has_the_first_stage_that_it_is_published_with(objective, dim, stage):
    assert first_stage(objective, random_heads(), dim) == stage
    assert first_stage("calmrl", {}, dim) == "centroid"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    draw, count = np.random.default_rng(3), 60
    features = {name: draw.normal(size=(count, d)).astype(np.float16) for name, d in DIMS.items()}
    path = tmp_path_factory.mktemp("stores") / "vast.zarr"
    write_store(
        path, dataset="made-up", modalities=[ModalitySpec(name, f"vast/{name}", f"sha256:{name}", d) for name, d in DIMS.items()],
        ids=[f"clip{i}" for i in range(count)], split=np.array(["train"] * 20 + ["validation"] * 10 + ["test"] * 30), features=features,
        offsets=dict.fromkeys(DIMS, np.arange(count + 1)), heads=random_heads(), licence="CC0",
    )  # fmt: skip
    return path


def test_zero_shot_vast_is_scored_by_its_fused_heads_in_both_directions(store, tmp_path):
    """VAST's own row: nothing trained, stored heads, the caption's embedding against the fused one; then whatever matching says of the best."""
    config = TrainConfig(store=str(store), objective="none", impute="none", init="stored", dim=DIM)
    run = train(config, tmp_path / "run")
    seen = {}

    def match(similarity, captions, items, who):
        seen[who] = similarity
        return -similarity

    frame = rerank_run(run, match, "itm")
    assert set(frame["scorer"]) == {"joint", "joint+itm"}
    assert set(seen) == {"captions", "clips"}
    opened, heads = FeatureStore.open(store), random_heads()
    test = np.flatnonzero(np.asarray(opened.split) == "test")
    rows = {name: np.asarray(opened.features(name), dtype=float)[test] for name in DIMS}
    texts = rows["caption"] @ heads["contra_head_t"].T.astype(float)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    shown = dict.fromkeys(("vision", "audio", "subtitle"), True)
    fused = np.stack([fused_by_hand({n: v[i] for n, v in rows.items()}, shown, heads) for i in range(len(test))])
    scores = texts @ fused.T
    np.testing.assert_allclose(seen["captions"], scores, atol=1e-5)
    first = frame[frame["scorer"] == "joint"]
    for query, by_query in (("caption", scores), ("vision+audio+subtitle", scores.T)):
        part = first[first["query"] == query].set_index("item").loc[[opened.ids[i] for i in test]]
        expected = [(row > row[i] + 1e-6).sum() for i, row in enumerate(by_query)]
        assert part["greater"].tolist() == expected
    # After a second stage that turns every score round, the last are first.
    second = frame[(frame["scorer"] == "joint+itm") & (frame["query"] == "caption")]
    assert second["greater"].sum() == sum((row < row[i] - 1e-6).sum() for i, row in enumerate(scores))


def test_a_first_stage_may_be_named(store, tmp_path):
    config = TrainConfig(store=str(store), objective="none", impute="none", init="stored", dim=DIM)
    run = train(config, tmp_path / "run")
    frame = rerank_run(run, lambda similarity, *_: similarity, "same", scorer="volume")
    assert set(frame["scorer"]) == {"volume", "volume+same"}


@pytest.mark.parametrize(
    "options", [{}, {"corners": ["audio", "subtitle"]}, {"query": "vision", "corners": ["caption", "audio"]}]
)
def test_triangle_is_scored_by_the_corners_that_it_was_trained_with(store, tmp_path, options):
    """A store of four modalities: the third beside the caption is no corner."""
    config = TrainConfig(store=str(store), objective="triangle", objective_options=options, epochs=1, batch_size=16, dim=DIM)
    run = train(config, tmp_path / "run")
    seen = {}
    frame = rerank_run(run, lambda similarity, _, __, who: seen.setdefault(who, similarity), "same")
    assert set(frame["scorer"]) == {"area", "area+same"}
    assert set(frame["gallery"]) == {"vision+audio+subtitle", "caption"}
    first, second = ("audio", "subtitle") if options.get("corners") == ["audio", "subtitle"] else ("vision", "audio")
    found = run.model().embed(FeatureStore.open(store), split="test")
    rows = {name: value.double().numpy() for name, value in zip(found.modalities, found.rows, strict=True)}
    for i, text in enumerate(rows["caption"]):
        for j, (a, b) in enumerate(zip(rows[first], rows[second], strict=True)):
            u, w = text - a, text - b
            area = np.sqrt(max((u @ u) * (w @ w) - (u @ w) ** 2, 0.0)) / 2
            assert abs(area + seen["captions"][i, j]) < 1e-5
