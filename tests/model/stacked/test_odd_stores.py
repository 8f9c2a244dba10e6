"""The recommended method on stores of odd shapes: it trains, and is below no plain baseline beyond the interval of the difference."""

import numpy as np
import pandas as pd
import pytest

from calmrl_lab import FeatureStore, evaluate, train_heads
from calmrl_lab.evaluation.significance import compare


def rows_of(latent, weights, rng, noise, captions=1, hidden=0.0, offset=0.0):
    """One entry per item: [captions, d] float32 rows of a latent vector, or None where the item lacks the modality."""
    n, d = len(latent), weights.shape[1]
    clean = (latent @ weights)[:, None, :] + offset
    values = clean + noise * latent.shape[1] ** 0.5 * rng.normal(size=(n, captions, d))
    lacks = rng.random(n) < hidden
    return [None if gone else rows.astype(np.float32) for gone, rows in zip(lacks, values, strict=True)]


def few_items(rng):
    """Fifty items, two modalities that share a space of more dimensions than items."""
    latent, weights = rng.normal(size=(50, 20)), rng.normal(size=(20, 120))
    return {name: rows_of(latent, weights, rng, 1.0) for name in ("a", "b")}


def six_with_gaps(rng):
    """Six modalities: three share a space, two another one, one is alone; several captions, natural gaps, a mean far from zero."""
    latent = rng.normal(size=(150, 12))
    first, second, third = (rng.normal(size=(12, d)) for d in (32, 20, 6))
    return {
        "a": rows_of(latent, first, rng, 0.6),
        "b": rows_of(latent, first, rng, 0.6, captions=3),
        "c": rows_of(latent, first, rng, 0.8, hidden=0.3, offset=5.0),
        "d": rows_of(latent, second, rng, 0.6, hidden=0.2),
        "e": rows_of(latent, second, rng, 0.6),
        "f": rows_of(latent, third, rng, 0.5),
    }


def thousands_of_dimensions(rng):
    """Two modalities of 2,000 dimensions that share a space, beside one of 8."""
    latent, weights = rng.normal(size=(90, 10)), rng.normal(size=(10, 2000))
    return {
        "a": rows_of(latent, weights, rng, 1.0),
        "b": rows_of(latent, weights, rng, 1.0),
        "c": rows_of(latent, rng.normal(size=(10, 8)), rng, 0.3),
    }


def separate_spaces(rng):
    """A hundred and twenty items of as many latent dimensions as half of them, four modalities each in a space of its own, natural gaps: a dozen validation
    items a pair."""
    latent = rng.normal(size=(120, 60))
    sizes, hidden = (2000, 200, 384, 6), (0.0, 0.25, 0.4, 0.3)
    return {
        name: rows_of(latent, rng.normal(size=(60, d)), rng, 1.0, captions=3 if d == 6 else 1, hidden=lost)
        for name, d, lost in zip("abcd", sizes, hidden, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("made", [few_items, six_with_gaps, thousands_of_dimensions, separate_spaces])
@pytest.mark.parametrize("scenario", ["pairs:0.25", "full"])
def test_it_is_below_no_plain_baseline(tmp_path, made, scenario):
    store = tmp_path / "s.zarr"
    FeatureStore.from_arrays(made(np.random.default_rng(0)), path=store)
    scores = {}
    plain = ("cca",) if made is separate_spaces else ("raw", "raw-centred", "cca")
    for method in ("recommended", *plain):
        run = train_heads(store, method=method, scenario=scenario, seed=0, run=tmp_path / method)
        evaluate(run)
        table = pd.read_parquet(run.path / "scores.parquet")
        table["rank"] = 1 / (1 + table["greater"] + table["equal"] / 2)
        table["number"] = table.groupby(["query", "gallery", "item"]).cumcount()
        scores[method] = table
    for method in plain:
        pairs = scores["recommended"].merge(scores[method], on=["query", "gallery", "item", "number"], suffixes=("", "_other"))
        ours, theirs = pairs["rank"].to_numpy(), pairs["rank_other"].to_numpy()
        found = compare(ours, theirs, np.random.default_rng(0), groups=pairs["group"].to_numpy())
        assert found.high >= 0, (method, found)
