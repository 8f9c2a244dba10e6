"""The filler: follows moving heads, keeps complete items alive through the replay bank, gives back what it saved."""

import numpy as np
import pytest
import torch

from calmrl_lab.data.table import load_table
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_auto import AutoPPCA
from calmrl_lab.model.encode import encode, stack
from calmrl_lab.model.feature_map import fit_scaling
from calmrl_lab.model.projection import Heads
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.online_imputer import OnlineImputer

FOUR = ("vision", "audio", "caption", "subtitle")


@pytest.fixture(scope="module")
def tables(small_store):
    """Complete training items, the same items as a vision-caption source shows them, and validation items."""
    store = FeatureStore.open(small_store)
    table = load_table(store, FOUR)
    table = table.mapped([fit_scaling(rows, "scaled") for rows in table.rows])
    train = table.select(np.flatnonzero(store.split == "train"))
    half = len(train) // 2
    complete, pairs = train.select(np.arange(half)), train.select(np.arange(half, len(train)))
    shown = np.zeros((len(pairs), 4), dtype=bool)
    shown[:, [0, 2]] = True
    return complete, pairs.with_mask(shown), table.select(np.flatnonzero(store.split == "validation"))


def heads_of(table, seed=0):
    return Heads(table.dims, 16, seed=seed).eval()


def filler(tables, **options):
    complete, _, validation = tables
    return OnlineImputer("ppca", {"latent_dim": 4}, FOUR, validation, [complete], **options)


def test_replayed_items_are_encoded_with_the_heads_of_the_moment(tables):
    complete, pairs, _ = tables
    following = filler(tables)
    following.refresh(heads_of(pairs, 0), pairs, 10)
    start = {name: getattr(following.imputer, name) for name in ("weights", "means", "noise")}
    moved = heads_of(pairs, 1)
    following.refresh(moved, pairs, 10)
    # What it is fitted to: both sets as the new heads see them, from the parameters it had.
    parts = [encode(moved, part) for part in (complete, pairs)]
    embeddings = [torch.cat([part[j] for part in parts]) for j in range(4)]
    expected = PPCA(4).fit(embeddings, torch.cat([complete.mask, pairs.mask]), iterations=10, start=start)
    np.testing.assert_allclose(
        np.concatenate(following.imputer.weights), np.concatenate(expected.weights), rtol=1e-5, atol=1e-6
    )


def test_replay_keeps_modalities_that_training_no_longer_shows(tables):
    _, pairs, validation = tables
    old, new = heads_of(pairs, 0), heads_of(pairs, 1)
    kept = filler(tables)
    kept.refresh(old, pairs, 30)
    stale = kept.noise_scaled
    kept.refresh(new, pairs, 30)
    truth = encode(new, validation)
    shown = torch.tensor([True, False, True, False]).expand(len(validation), -1)
    hidden = ~shown & validation.mask

    def error(imputer):
        filled = imputer.impute(truth, shown)
        return float((stack(filled) - stack(truth)).square().sum(dim=2)[hidden].mean())

    assert error(kept.noise_scaled) < 0.9 * error(stale)


def test_near_duplicates_stay_together_where_the_imputer_holds_items_out(tables, monkeypatch):
    complete, pairs, validation = tables
    given = []
    fit = AutoPPCA.fit
    monkeypatch.setattr(AutoPPCA, "fit", lambda self, *data, **how: given.append(how["groups"]) or fit(self, *data, **how))
    following = OnlineImputer("ppca-auto", {"latent_dim": 4, "folds": 3}, FOUR, validation, [complete])
    following.refresh(heads_of(pairs), pairs, 5)
    assert given[0].tolist() == [*complete.group.tolist(), *pairs.group.tolist()]
    assert len(set(given[0].tolist())) < len(given[0])


def test_without_replay_a_modality_that_no_item_shows_is_refused(tables):
    from calmrl_lab.errors import CalmrlError

    _, pairs, validation = tables
    alone = OnlineImputer("ppca", {"latent_dim": 4}, FOUR, validation)
    with pytest.raises(CalmrlError, match="modality 'audio' is never observed"):
        alone.refresh(heads_of(pairs), pairs, 5)


def test_no_gradient_flows_into_what_is_filled_and_observed_entries_stay(tables):
    _, pairs, _ = tables
    filling, heads = filler(tables), heads_of(pairs)
    filling.refresh(heads, pairs, 5)
    embeddings = stack(encode(heads, pairs)).requires_grad_()
    filled = filling.fill(embeddings, pairs.mask)
    assert not filled.requires_grad
    assert torch.equal(filled[pairs.mask], embeddings.detach()[pairs.mask])


def test_what_is_saved_comes_back(tables):
    _, pairs, _ = tables
    filling, heads = filler(tables), heads_of(pairs)
    assert filling.state() == {}
    filling.refresh(heads, pairs, 5)
    again = filler(tables)
    again.load(filling.state())
    embeddings = stack(encode(heads, pairs))
    assert torch.equal(filling.fill(embeddings, pairs.mask), again.fill(embeddings, pairs.mask))
