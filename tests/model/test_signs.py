"""Signs of modalities: chosen by the pairs that items show, against all choices by brute force."""

import itertools

import numpy as np
import pytest
import torch

from calmrl_lab.model.initialisation import _turn_without_mean
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.signs import _greedy_signs, best_rotations, best_signs, pair_cosines


@pytest.mark.parametrize("seed", range(8))
def test_no_other_signs_agree_better(seed):
    random = np.random.default_rng(seed)
    upper = np.triu(random.standard_normal((5, 5)), 1)
    cosines = torch.from_numpy(upper + upper.T)

    def agreement(signs):
        return float(torch.tensor(signs, dtype=torch.float64) @ cosines @ torch.tensor(signs, dtype=torch.float64))

    best = max(agreement((1, *rest)) for rest in itertools.product((1, -1), repeat=4))
    assert agreement(best_signs(cosines)) == pytest.approx(best)
    assert best_signs(cosines)[0] == 1


@pytest.mark.parametrize("choose", [best_signs, _greedy_signs])
def test_mirrored_modalities_are_mirrored_back(choose):
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    cosines = torch.outer(signs, signs).double() * 0.3
    cosines.fill_diagonal_(0.0)
    assert choose(cosines) == (1, -1, -1, 1)


def test_nothing_changes_where_all_agree_or_nothing_is_known():
    assert best_signs(torch.full((4, 4), 0.2)) == (1, 1, 1, 1)
    assert best_signs(torch.zeros(4, 4)) == (1, 1, 1, 1)
    assert best_signs(torch.zeros(1, 1)) == (1,)


def test_cosines_count_the_items_that_show_both():
    rows = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    mask = torch.tensor([[True, True, False]] * 4 + [[True, False, False]] * 2)
    found = pair_cosines([rows, -rows, rows], mask)
    assert found[0, 1] == pytest.approx(-1.0)
    assert found[0, 2] == found[1, 2] == 0.0


def unit(count, dim, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_modalities_that_are_opposed_in_some_directions_are_turned():
    rows, mask = unit(200, 6), torch.ones(200, 3, dtype=torch.bool)
    mixed = torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    other = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    views = [rows, rows @ mixed, rows @ other]
    assert float(pair_cosines(views, mask)[0, 1].abs()) < 0.2
    found = best_rotations(views, mask, [1, 2])
    turned = [rows, *(view @ found[index].float() for index, view in enumerate(views) if index)]
    assert (pair_cosines(turned, mask)[~torch.eye(3, dtype=torch.bool)] > 0.999).all()
    for rotation in found.values():
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(6, dtype=torch.float64))


def test_rotations_raise_the_sum_of_mean_cosines_under_gaps():
    generator = torch.Generator().manual_seed(2)
    views = [unit(300, 5, seed) + 0.5 * unit(300, 5) for seed in (3, 4, 5)]
    mask = torch.rand(300, 3, generator=generator) < 0.6
    found = best_rotations(views, mask, [1, 2])
    turned = [views[0], *(views[index] @ found[index].float() for index in (1, 2))]
    assert pair_cosines(turned, mask).sum() > pair_cosines(views, mask).sum()


def test_nothing_is_turned_without_items_that_show_two_modalities():
    found = best_rotations([unit(4, 3), unit(4, 3)], torch.tensor([[True, False], [False, True]] * 2), [1])
    assert torch.equal(found[1], torch.eye(3, dtype=torch.float64))


def test_zero_mean_views_start_on_one_side_in_every_direction():
    latent = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    rows = [latent @ torch.randn(4, 12, generator=torch.Generator().manual_seed(1 + j)) for j in range(3)]
    mask = torch.rand(600, 3, generator=torch.Generator().manual_seed(9)) < 0.7
    dims = dict.fromkeys("abc", 12)
    heads = Heads(dims, 8, seed=0)
    with torch.no_grad():
        _turn_without_mean(heads, [heads.project(j, part) for j, part in enumerate(rows)], mask, "scaled")
        embeddings = [heads.project(j, part) for j, part in enumerate(rows)]
    assert (pair_cosines(embeddings, mask)[~torch.eye(3, dtype=torch.bool)] > 0.5).all()
