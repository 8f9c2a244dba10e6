"""Signs of modalities: chosen by the pairs that items show, against all choices by brute force."""

import itertools

import numpy as np
import pytest
import torch

from calmrl_lab.model.signs import _greedy_signs, best_signs, pair_cosines


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
