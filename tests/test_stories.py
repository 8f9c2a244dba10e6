"""Three users, each with the commands of the README and nothing else: features with gaps, Parquet files to a search, VAST's weights to Table 1."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from calmrl_lab.store import FeatureStore

pytestmark = pytest.mark.slow


class Story:
    """Commands through the real command line, counted."""

    def __init__(self, cli):
        self._cli, self.commands = cli, 0

    def __call__(self, line, *more):
        """Run one command that must succeed; what it printed."""
        self.commands += 1
        code, out, err = self._cli(*line.split(), *more)
        assert code == 0, f"calmrl-lab {line}\n{err}"
        return out


@pytest.fixture
def story(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Story(cli)


def related(n, dims, seed=0):
    """Arrays [n, d] of a few common causes."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(n, 6))
    return [(common @ generator.normal(size=(6, d)) + 0.3 * generator.normal(size=(n, d))).astype(np.float32) for d in dims]


def test_own_arrays_with_gaps_to_a_verdict_and_embeddings(story, tmp_path):
    vision, text, sound = related(240, (20, 16, 12))
    text[::3], sound[1::3] = np.nan, np.nan
    for name, values in (("vision", vision), ("text", text), ("sound", sound)):
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "ids.txt").write_text("\n".join(f"clip{i}" for i in range(240)) + "\n")

    arrays = "--modality vision=vision.npy --modality text=text.npy --modality sound=sound.npy"
    story(f"store import --out stores/mine.zarr {arrays} --ids ids.txt")
    assert "240" in story("store info stores/mine.zarr")
    story("impute --store stores/mine.zarr --out filled.zarr --check")
    story("train-heads --run runs/mine/recommended-s0 --epochs 3")
    story("train-heads --impute ppca --run runs/mine/calmrl-s0 --epochs 3")
    assert "mean" in story("evaluate runs/mine/recommended-s0")
    story("evaluate runs/mine/calmrl-s0")
    told = story("compare runs/mine/recommended-s0 runs/mine/calmrl-s0")
    assert "mean: every direction counts alike" in told
    story("embed runs/mine/calmrl-s0 --out embeddings.npz")
    story("report --runs runs/mine --out reports/mine")
    assert story.commands <= 10

    assert FeatureStore.open("filled.zarr").mask.all()
    embeddings = np.load("embeddings.npz")
    assert embeddings["ids"][0] == "clip0"
    shown = embeddings["mask"]
    assert np.isnan(embeddings["text"]).all(axis=1).tolist() == (~shown[:, 1]).tolist()
    np.testing.assert_allclose(np.linalg.norm(embeddings["vision"], axis=1), 1, atol=1e-5)
    assert "<svg" in (tmp_path / "reports" / "mine" / "index.html").read_text()


def test_parquet_with_an_own_id_column_to_a_search(story, cli, tmp_path):
    import pandas as pd

    pytest.importorskip("faiss")
    image, text = related(200, (20, 16))
    names = [f"SKU-{i:04}" for i in range(200)]
    pd.DataFrame({"sku": names, "image": list(image)}).to_parquet(tmp_path / "image.parquet")
    order = np.random.default_rng(1).permutation(200)[:150]
    pd.DataFrame({"sku": [names[i] for i in order], "embedding": list(text[order])}).to_parquet(tmp_path / "text.parquet")

    story("store import --out stores/shop.zarr --modality image=image.parquet --modality text=text.parquet --id-column sku")
    story("train-heads --run runs/shop")
    rows = json.loads(story("evaluate runs/shop --json"))
    assert {(row["query"], row["gallery"]) for row in rows} == {("image", "text"), ("text", "image")}
    assert all(row["recall_at_1"] > 10 * row["chance_recall_at_1"] for row in rows)
    story("index --run runs/shop --modalities image --out indexes/shop")
    found = json.loads(story(f"search --index indexes/shop --item {names[order[0]]} --modality text --json"))
    assert names[order[0]] in [row["id"] for row in found[:5]]
    np.save(tmp_path / "query.npy", text[order[:2]])
    found = json.loads(story("search --index indexes/shop --features query.npy --modality text --json"))
    assert {row["query"] for row in found} == {0, 1}
    assert story.commands <= 10
    # Words cannot be encoded: nobody knows what made the features. The error says what can be done instead.
    code, _, err = cli("search", "--index", "indexes/shop", "--text", "red shoes", "--modality", "text")
    assert code == 2
    assert "was imported, so calmrl-lab has no encoder of texts for it" in " ".join(err.split())
    assert "--features" in err


def test_thin_weights_of_vast_to_table_1(story, tmp_path):
    pytest.importorskip("av")
    from docs.thin_data import write_thin_data

    write_thin_data(tmp_path)
    assert "ok" in story("weights check weights/vast")
    for name in ("msrvtt", "vast150k", "audiocaps"):
        story(
            f"extract --dataset {name} --encoders vast-paper --media data/{name} --weights weights/vast --out stores/{name}.zarr"
        )
    # The thin release has heads of 16 dimensions, fewer together than the 64 latent ones of the file.
    short = "--set seeds=[0] --set common.epochs=1 --set common.warm_up_epochs=1 --set common.init=random --set common.dim=80"
    story(f"experiment table1 --jobs 1 {short}")
    story("report --runs runs/table1-paper --out reports/table1")
    assert story.commands <= 10
    table = (tmp_path / "reports" / "table1" / "tables" / "recall.csv").read_text()
    for method in ("VAST, untrained", "CLIP", "GRAM", "TRIANGLE", "PMRL", "CalMRL", "CalMRL as released"):
        assert method in table


def test_what_the_report_says_of_the_recommended_method_in_the_flow_of_the_readme(story, small_store):
    """Three runs in one folder, as the README has them: the recommended method trains by contrast too, and is no plain contrastive training."""
    lines = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    flow = [line.removeprefix("calmrl-lab ") for line in lines if line.startswith("calmrl-lab ") and "/mine" in line]
    flow = [line for line in flow if line.startswith(("train-heads", "evaluate", "report"))]
    assert [line.split()[0] for line in flow] == ["train-heads"] * 3 + ["evaluate"] * 3 + ["report"]
    for line in flow:
        quick = " --epochs 2 --modalities vision,audio,caption" if line.startswith("train-heads") else ""
        story(line.replace("stores/openmoji.zarr", str(small_store)) + quick)
    page = Path("reports/mine/index.html").read_text(encoding="utf-8")
    said = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "recommended" in said
    # No run of the flow is plain contrastive training, so that nothing is compared with it.
    assert "fills in nothing" not in said
    assert "plain contrastive training" not in said
