"""Runs that compare pairs by something else than the cosine of one model, and ensembles: every command does what they are for, or says so."""

import json
import shutil

import numpy as np
import pytest

from calmrl_lab.config import SIMILARITY_WORDS, TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.missing_curves import aggregation_gain, run_curves
from calmrl_lab.training.train import train

START = {
    "objective": "none",
    "init": "ppca",
    "init_options": {"latent_dim": 24, "components": 60, "whitening": 0.5, "embedding": "precision"},
}
KINDS = {
    "likelihood-ratio": {**START, "similarity": "likelihood-ratio"},
    "sum": {**START, "objective": "clip", "similarity": "sum"},
    "ensemble": {"objective": "clip", "members": [START, {"learning_rate": 0.003}]},
}


@pytest.fixture(scope="module")
def made(small_store, tmp_path_factory):
    """Evaluated runs by kind; the ensemble has no imputer, whatever its settings say of its members."""
    common = {"store": str(small_store), "scenario": "pairs:0.25", "dim": 16, "epochs": 2}
    common["modalities"] = ["vision", "caption", "subtitle"]
    runs = {}
    for kind, settings in KINDS.items():
        config = TrainConfig(**{**common, **settings})
        runs[kind] = train(config, tmp_path_factory.mktemp("runs") / kind)
        evaluate(runs[kind])
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["likelihood-ratio", "sum"])
def test_curves_compare_as_the_run_does(made, kind):
    frame = run_curves(made[kind], queries=["caption"], scenarios=["full", "random:0.5"])
    assert set(frame["scorer"]) == {kind, f"{kind}:vision", f"{kind}:subtitle"}
    scores = made[kind].read_frame("scores.parquet")
    # With one modality on the other side it is the very score of `evaluate`, in both directions.
    for side, query, gallery in (("gallery", "caption", "vision"), ("query", "vision", "caption")):
        plain = scores[(scores["query"] == query) & (scores["gallery"] == gallery)].set_index("item")
        single = frame[(frame["scorer"] == f"{kind}:vision") & (frame["side"] == side) & (frame["gallery_scenario"] == "full")]
        assert single["greater"].tolist() == plain.loc[single["item"], "greater"].tolist()
    gain = aggregation_gain(frame, np.random.default_rng(0))
    assert len(gain) == 4
    assert set(gain["best_single"]) <= {"vision", "subtitle"}


def test_a_scorer_that_was_asked_for_is_used(made):
    frame = run_curves(made["likelihood-ratio"], scorers=["centroid"], queries=["caption"], scenarios=["full"])
    assert set(frame["scorer"]) == {"centroid", "cosine:vision", "cosine:subtitle"}
    both = run_curves(made["sum"], scorers=["centroid", "likelihood-ratio"], queries=["caption"], scenarios=["full"])
    gain = aggregation_gain(both, np.random.default_rng(0)).set_index(["side", "scorer"])
    first = both.assign(hit=both["greater"] == 0).query("side == 'gallery'").groupby("scorer")["hit"].mean()
    for scorer, alone in (("centroid", "cosine"), ("likelihood-ratio", "likelihood-ratio")):
        best = max(first[f"{alone}:vision"], first[f"{alone}:subtitle"])
        assert gain.loc[("gallery", scorer), "single"] == pytest.approx(100 * best)


def test_a_run_without_ppca_has_no_likelihood_ratio(made, trained):
    with pytest.raises(CalmrlError, match="has no PPCA of its features"):
        run_curves(trained, scorers=["likelihood-ratio"], queries=["caption"], scenarios=["full"])
    with pytest.raises(CalmrlError, match="chose no weight for similarity 'sum'"):
        run_curves(made["likelihood-ratio"], scorers=["sum"], queries=["caption"], scenarios=["full"])


def test_an_ensemble_fills_no_gaps_of_its_own(made):
    run = made["ensemble"]
    assert not (run.path / "imputation.parquet").exists()
    frame = run_curves(run, queries=["caption"], scenarios=["full", "random:0.5"])
    assert not frame["calibrated"].any()
    assert set(frame["scorer"]) == {"centroid", "anchor", "cosine:vision", "cosine:subtitle"}


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_says_how_pairs_are_compared(made, cli, kind):
    code, said, _ = cli("evaluate", "--run", made[kind].path, "--direction", "caption:vision")
    assert code == 0
    words = {
        "likelihood-ratio": "likelihood ratio under PPCA (PLDA scoring);",
        "sum": "PPCA plus the cosine",
        "ensemble": "the cosine of their embeddings",
    }
    assert words[kind] in said
    assert json.loads((made[kind].path / "evaluation.json").read_text())["similarity"] == made[kind].config.similarity
    evaluate(made[kind])


@pytest.mark.parametrize("kind", ["likelihood-ratio", "sum"])
def test_an_index_compares_as_the_run_does(small_store, tmp_path, kind):
    pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
    from calmrl_lab.evaluation.run_items import open_run
    from calmrl_lab.search.index_folder import Gallery, build_gallery
    from calmrl_lab.store import FeatureStore

    # Not every emoji has keywords.
    names = ["vision", "caption", "keywords"]
    config = TrainConfig(store=str(small_store), scenario="pairs:0.25", dim=16, epochs=1, modalities=names, **KINDS[kind])
    run = train(config, tmp_path / "run")
    build_gallery(run, tmp_path / "index", split="test", modalities=["vision", "keywords"])
    shutil.move(tmp_path / "index", tmp_path / "moved")  # it stands alone
    gallery = Gallery.open(tmp_path / "moved")
    assert gallery.facts["scorer"] == gallery.facts["run_similarity"] == kind
    assert len(gallery.facts["patterns"]) > 1

    _, model, stored = open_run(run)
    space = model.represent(stored.of("test"))
    scorer = model.scorer(kind, "caption", ["vision", "keywords"])
    asked, columns = space.modalities.index("caption"), [space.modalities.index(m) for m in ("vision", "keywords")]
    expected = scorer.score(space.rows[asked], space.items[:, columns], space.mask[:, columns])
    best = expected.topk(3, dim=1)

    store = FeatureStore.open(run.config.store)
    owners = np.flatnonzero(np.isin(store.ids, space.ids[space.owners[asked].numpy()]))
    starts = store.offsets("caption")
    features = np.concatenate([store.features("caption")[starts[i] : starts[i + 1]] for i in owners])
    found = gallery.search(gallery.embed("caption", features), k=3)
    assert found["score"].to_numpy() == pytest.approx(best.values.flatten().numpy(), rel=1e-3, abs=1e-3)
    assert (found["id"].to_numpy() == space.ids[best.indices.flatten().numpy()]).mean() > 0.98  # the rest are ties in float32


@pytest.mark.parametrize("kind", ["likelihood-ratio", "sum"])
def test_the_commands_of_an_index_say_how_it_compares(made, tmp_path, cli, kind):
    pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
    words = ("index", "--run", made[kind].path, "--out", tmp_path / "index")
    code, said, _ = cli(*words, "--index-type", "hnsw")
    assert code == 0
    assert "likelihood ratio (nats)" in said
    assert ("times the cosine" in said) == (kind == "sum")
    assert "with what an item shows of vision, caption, subtitle" in said
    assert "of the true ten nearest items" in said
    code, said, noted = cli("search", "--index", tmp_path / "index", "--item", "2615", "-k", "2")
    assert (code, len(said.splitlines()), noted) == (0, 3, "")

    code, said, _ = cli(*words, "--scorer", f"{kind}:vision")
    assert code == 0
    assert "with what an item shows of vision\n" in said

    # Over the first one, which knew a PPCA.
    code, said, _ = cli(*words, "--scorer", "centroid")
    assert code == 0
    assert not (tmp_path / "index" / "model" / "transform.safetensors").exists()
    assert "cosine with the centroid of vision, caption, subtitle" in said
    assert "the run itself compares pairs by their likelihood ratio" in said
    code, said, noted = cli("search", "--index", tmp_path / "index", "--item", "2615", "-k", "2")
    assert (code, len(said.splitlines())) == (0, 3)
    assert "found by cosine with the centroid" in noted


def test_indexes_that_make_no_sense_are_one_sentence(made, trained, tmp_path):
    from calmrl_lab.search.index_folder import build_gallery

    with pytest.raises(CalmrlError, match="there are no gaps to fill"):
        build_gallery(made["sum"], tmp_path / "index", impute_gaps=True)
    with pytest.raises(CalmrlError, match="has no PPCA of its features"):
        build_gallery(trained, tmp_path / "index", scorer="likelihood-ratio")
    with pytest.raises(CalmrlError, match="chose no weight for similarity 'sum'"):
        build_gallery(made["likelihood-ratio"], tmp_path / "index", scorer="sum")
    with pytest.raises(CalmrlError, match="no modality 'visoin'; did you mean 'vision'"):
        build_gallery(made["likelihood-ratio"], tmp_path / "index", scorer="likelihood-ratio:visoin")
    assert not (tmp_path / "index").exists()


def test_an_ensemble_is_indexed_by_its_joined_heads(made, tmp_path):
    pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
    from calmrl_lab.search.index_folder import build_gallery

    gallery = build_gallery(made["ensemble"], tmp_path / "index", split="test")
    assert gallery.facts["dim"] == made["ensemble"].model().projection.dim
    assert gallery.facts["run_similarity"] == "cosine"


def test_a_report_draws_every_run_by_the_scorer_it_has(made, tmp_path):
    from calmrl_lab.reporting.content.missing_modalities import curve_figure, gain_table, robustness
    from calmrl_lab.reporting.output.palette import inks
    from calmrl_lab.reporting.results.collect import gather

    for kind in ("likelihood-ratio", "ensemble"):
        run_curves(made[kind], queries=["caption"], scenarios=["full", "random:0.5"])
        shutil.copytree(made[kind].path, tmp_path / f"{kind}-s0")
    gathered = gather(tmp_path)
    found = robustness(gathered)
    ink = inks(gathered.methods)
    caption = curve_figure(found, ink).caption
    assert ": likelihood-ratio)" in caption
    assert {(gain.method.name, gain.scorer) for gain in found.gains} == {
        ("likelihood-ratio", "likelihood-ratio"),
        ("ensemble", "centroid"),
        ("ensemble", "anchor"),
    }
    assert len(gain_table(found, ink).rows) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_shows_what_the_run_found_first(made, tmp_path, small_store, kind):
    from calmrl_lab.reporting.content.nearest_items import found_first
    from calmrl_lab.reporting.page.record_sections import _similarity
    from calmrl_lab.reporting.results.collect import gather
    from calmrl_lab.store import FeatureStore

    shutil.copytree(made[kind].path, tmp_path / f"{kind}-s0")
    gathered = gather(tmp_path)
    assert _similarity(gathered) == SIMILARITY_WORDS[made[kind].config.similarity]
    run = gathered.methods[0].runs[0]
    ranks = run.scores.query("query == 'caption' and gallery == 'subtitle'").set_index("item")
    found = found_first(FeatureStore.open(small_store), run, ("caption", "subtitle"), list(ranks.index), "test")
    for item, first in found.items():
        greater = ranks.loc[item, "greater"]
        assert (first.index(item) if item in first else None) == (greater if greater < 5 else None)
