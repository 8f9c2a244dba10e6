"""The benchmarks of imputation run, resume, refuse, and put their numbers where a page wants them."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from calmrl_lab.training.train import train_heads

FOLDER = Path(__file__).parents[2] / "benchmarks"


def bench(name, *words, code=0):
    command = [sys.executable, FOLDER / f"{name}.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_rivals_are_compared_in_pieces_and_written_into_a_page(small_store, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- rivals: begin -->\nstale\n<!-- rivals: end -->\n\nAfter.\n")
    asked = [small_store, "--imputers", "mean,ppca", "--gaps", "50%", "--seeds", "2", "--results", tmp_path / "r"]
    started = bench("rivals", *asked, "--minutes", "0")
    assert "4 pieces are left" in started.stderr
    done = json.loads(bench("rivals", *asked, "--json", "--write", page).stdout)
    assert len(list((tmp_path / "r").iterdir())) == 4
    mean, ppca = done["rows"]
    assert (mean["imputer"], ppca["imputer"]) == ("mean", "ppca")
    assert mean["error"]["value"] == pytest.approx(1)
    assert ppca["error"]["low"] < ppca["error"]["value"] < ppca["error"]["high"]
    text = page.read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "stale" not in text
    assert f"{ppca['error']['value']:.3f}" in text
    assert "real error" in (tmp_path / "predicted-error-openmoji-small.svg").read_text()
    # Errors are those of hidden entries only, and a kept piece is not computed again.
    piece = next((tmp_path / "r").glob("*mean.parquet"))
    frame = pd.read_parquet(piece)
    assert frame["squared_error"].to_numpy() == pytest.approx(frame["mean_error"].to_numpy(), rel=1e-4)
    stamp = piece.stat().st_mtime_ns
    bench("rivals", *asked)
    assert piece.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_the_oracle_is_the_default_fitted_with_nothing_hidden(small_store, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import _rival_tables
    import rivals

    assert rivals.make(rivals.ORACLE).name == _rival_tables.DEFAULT
    # With a default that is quick: hidden in training, the same model knows less.
    monkeypatch.setattr(_rival_tables, "DEFAULT", "ridge")
    data = rivals.prepared(str(small_store))
    oracle, plain = (rivals.measure(data, "75%", name, 0)["squared_error"] for name in (rivals.ORACLE, "ridge"))
    assert len(oracle) == len(plain)
    assert oracle.mean() < plain.mean()


def trained(small_store, folder, imputer, **options):
    return train_heads(
        small_store, imputer=imputer, scenario="pairs:0.25", run=folder / imputer, modalities=["vision", "audio", "caption", "subtitle"],
        epochs=2, dim=16, batch_size=64, first_iterations=5, impute_options=options,
    ).path  # fmt: skip


@pytest.mark.slow
def test_anchors_of_a_run_are_measured_and_written_into_a_page(small_store, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- anchors: begin -->\nstale\n<!-- anchors: end -->\n")
    run = trained(small_store, tmp_path, "ppca", latent_dim=4)
    (found,) = json.loads(bench("anchors", run, "--json", "--write", page).stdout)["runs"]
    observed, imputed, best = found["anchors"]
    assert [row["anchor"] for row in found["anchors"]] == ["observed", "imputed", "Bayes"]
    assert all(0 < row["sine"]["low"] < row["sine"]["value"] < row["sine"]["high"] < 1 for row in found["anchors"])
    for row in (imputed, best):
        assert row["real"]["value"] == pytest.approx(observed["sine"]["value"] - row["sine"]["value"], abs=1e-9)
    stated = {row["bound"]: row for row in found["bounds"]}
    for name, row in stated.items():
        assert row["over_shift"] <= 1 if name.startswith("lower") else row["over_shift"] >= 1, name
        assert 0 <= row["silent"] <= 1
    assert stated["upper, two-sided"]["over_shift"] <= stated["upper, as printed"]["over_shift"]
    assert "stale" not in page.read_text()
    assert f"{imputed['sine']['value']:.3f}" in page.read_text()
    assert "does not impute with PPCA" in bench("anchors", trained(small_store, tmp_path, "mean"), code=2).stderr


@pytest.mark.slow
def test_requests_that_make_no_sense(small_store, tmp_path):
    asked = ["--imputers", "mean", "--seeds", "1", "--results", tmp_path / "r", "--gaps", "50%"]
    assert "'unit' or 'standard'" in bench("rivals", f"{small_store}:whitened", *asked, code=2).stderr
    assert "no marks" in bench("rivals", small_store, *asked, "--write", tmp_path / "none.md", code=2).stderr


@pytest.mark.slow
def test_the_quick_timings_report_their_ratios():
    lines = json.loads(bench("imputation", "--quick", "--json").stdout)["results"]
    values = {line["what"]: line["value"] for line in lines}
    assert values["largest difference of iterates after 5 EM steps"] < 1e-10
    assert values["times faster than batched rows"] > 1
