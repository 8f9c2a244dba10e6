"""Similarities of a stacked sum: pairs, sets and index vectors agree, models survive saving, groups are found by asking."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model import similarity
from calmrl_lab.model.feature_map import UnitNorm
from calmrl_lab.model.similarity import LikelihoodRatio, Similarity, Sum, weighted_parts
from calmrl_lab.model.stacked.canonical_cosine import fit_canonical_cosine, fit_kernel_canonical_cosine
from calmrl_lab.model.stacked.feature_cosine import FeatureCosine
from calmrl_lab.model.stacked.pair_weighted import PairWeighted
from calmrl_lab.model.stacked.shared_space import feature_cosine, fit_shared_space, shared_groups
from calmrl_lab.model.stacked.stack import stack

NAMES = ("image", "text", "sound", "name")


def shared_and_separate(seed: int = 0, n: int = 120, gaps: bool = True) -> FeatureTable:
    """Image, text and name share a space of 12 dimensions (name: another 12, rotated); sound has 5 of its own, made of the same latent vector."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 12, generator=generator)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(99)))[0]

    def noisy(rows: Tensor) -> Tensor:
        return rows + 0.6 * torch.randn(rows.shape, generator=generator)

    rows = (
        3 * noisy(latent) + 1.0, noisy(latent) - 0.5, noisy(latent @ torch.randn(12, 5, generator=torch.Generator().manual_seed(98))),
        noisy(latent @ rotation),
    )  # fmt: skip
    ids = np.array([f"i{number}" for number in range(n)])
    mask = torch.rand(n, 4, generator=generator) < 0.7 if gaps else torch.ones(n, 4, dtype=torch.bool)
    mask[:4] = True
    return FeatureTable(NAMES, ids, ids, rows, (torch.arange(n + 1),) * 4, mask)


def kernels_of(table: FeatureTable) -> list[KernelPCA]:
    return [KernelPCA.of(rows[table.mask[:, j]], 20) for j, rows in enumerate(table.first_rows())]


def kinds() -> dict[str, Similarity]:
    table, validation = shared_and_separate(), shared_and_separate(1, gaps=False)
    groups = [(0, 1)]
    space = fit_shared_space(table, validation, groups)
    maps = tuple(UnitNorm(part.shape[1]) for part in table.rows)
    parts: dict[str, Similarity] = {
        "raw": feature_cosine(table, groups, centred=False),
        "centred": feature_cosine(table, [(0, 1, 3)], centred=True),
        "shared": LikelihoodRatio(space.latent, maps),
        "canonical": fit_canonical_cosine(table, validation)[0],
        "kernel": fit_kernel_canonical_cosine(table, validation, kernels_of(table))[0],
    }
    total, _ = stack(parts, validation, validation.first_rows(), groups)
    return {**parts, "sum": total}


KINDS = kinds()


def vectors_of(one: Similarity, table: FeatureTable) -> list[Tensor]:
    return [one.vectors(name, rows, rows) for name, rows in zip(NAMES, table.first_rows(), strict=True)]


@pytest.mark.parametrize("name", KINDS)
def test_a_set_of_one_is_a_pair_and_index_vectors_give_the_set_scores(name: str) -> None:
    one, table = KINDS[name], shared_and_separate(2, n=20)
    vectors = vectors_of(one, table)
    for query, gallery in itertools.permutations(range(4), 2):
        left, right = one.pair_vectors(NAMES[query], NAMES[gallery], vectors[query], vectors[gallery])
        seen = torch.ones(20, 1, dtype=torch.bool)
        alone = one.set_scores(NAMES[query], [NAMES[gallery]], vectors[query], vectors[gallery][:, None], seen)
        difference = (alone - (left.double() @ right.double().T)).double()
        # Up to a term of the query.
        assert float((difference - difference[:, :1]).abs().max()) < 1e-8 * max(1.0, float(alone.abs().max()))
    shown = ["image", "text", "sound"]
    places = [NAMES.index(part) for part in shown]
    mask = table.mask[:, places]
    mask[~mask.any(dim=1), 0] = True
    items = torch.stack([vectors[j] for j in places], dim=1).masked_fill(~mask.unsqueeze(-1), 0.0)
    patterns = [[part for part, seen in zip(shown, row, strict=True) if seen] for row in torch.unique(mask, dim=0).tolist()]
    for query in ("name", "image"):
        asked = vectors[NAMES.index(query)]
        scores = one.set_scores(query, shown, asked, items, mask)
        found = one.query_vectors(shown, patterns, query, asked) @ one.item_vectors(shown, patterns, items, mask).T
        torch.testing.assert_close(found, scores.double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_is_read_back(name: str) -> None:
    one, table = KINDS[name], shared_and_separate(2, n=10)
    description, tensors = one.described("x/")
    again = similarity.read(json.loads(json.dumps(description)), tensors, "x/")
    for ours, theirs in zip(vectors_of(one, table), vectors_of(again, table), strict=True):
        assert torch.equal(ours, theirs)
    pair = one.pair_vectors("image", "text", *vectors_of(one, table)[:2])
    for ours, theirs in zip(pair, again.pair_vectors("image", "text", *vectors_of(again, table)[:2]), strict=True):
        assert torch.equal(ours, theirs)


def test_the_cosine_of_features_is_the_cosine() -> None:
    table = shared_and_separate()
    vectors = vectors_of(KINDS["raw"], table)
    left, right = KINDS["raw"].pair_vectors("image", "text", vectors[0], vectors[1])
    expected = torch.nn.functional.cosine_similarity(table.rows[0].double()[:, None], table.rows[1].double()[None], dim=2)
    torch.testing.assert_close(left @ right.T, expected)
    # Sound is of no group: nothing is compared with it.
    assert not bool(vectors[2].any())


def test_groups_are_those_whose_features_agree() -> None:
    table, validation = shared_and_separate(), shared_and_separate(1)
    # Name has the dimension of image and text and a space of its own, sound another dimension.
    assert shared_groups(table, validation) == [(0, 1)]


def test_pairs_never_seen_together_make_no_group() -> None:
    table = shared_and_separate()
    apart = table.mask.clone()
    apart[:, 0] = torch.arange(len(table)) % 2 == 0
    apart[:, 1] = ~apart[:, 0]
    assert shared_groups(table.with_mask(apart), shared_and_separate(1)) == []


def test_a_modality_of_no_group_has_no_part_in_the_shared_space() -> None:
    space = fit_shared_space(shared_and_separate(), shared_and_separate(1), [(0, 1)])
    assert not bool(space.latent.maps[2].any())
    assert not bool(space.latent.precisions[3].any())
    assert space.chosen[0]["modalities"] == ["image", "text"]


def test_canonical_variates_find_what_a_rotation_hides() -> None:
    table, validation, test = (shared_and_separate(seed, gaps=seed == 0) for seed in (0, 1, 2))
    one, chosen = fit_canonical_cosine(table, validation)
    vectors = vectors_of(one, test)
    left, right = one.pair_vectors("image", "name", vectors[0], vectors[3])
    found = ((left @ right.T).argmax(dim=1) == torch.arange(len(test))).double().mean()
    plain = normalize(test.rows[0], dim=1) @ normalize(test.rows[3], dim=1).T
    assert float(found) > 5 * float((plain.argmax(dim=1) == torch.arange(len(test))).double().mean())
    assert chosen["dimensions"] in (16, 32, 64, 128)


def test_kernel_variates_find_what_no_linear_map_does() -> None:
    def squares(seed: int) -> FeatureTable:
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(300, 2, generator=generator)
        first = torch.cat([hidden, hidden.square()], dim=1)
        second = torch.cat([hidden.square() - 1, torch.randn(300, 2, generator=generator)], dim=1)
        rows = (first[:, :2], second)
        ids = np.array([str(number) for number in range(300)])
        return FeatureTable(("a", "b"), ids, ids, rows, (torch.arange(301),) * 2, torch.ones(300, 2, dtype=torch.bool))

    table, validation = squares(0), squares(1)
    kernels = [KernelPCA.of(rows, 50) for rows in table.rows]
    kernel, linear = fit_kernel_canonical_cosine(table, validation, kernels)[1], fit_canonical_cosine(table, validation)[1]
    assert kernel["validation_mrr"] > 2 * linear["validation_mrr"]


def test_a_pair_that_training_never_shows_has_no_variates() -> None:
    table = shared_and_separate()
    apart = table.mask.clone()
    apart[:, 0] = torch.arange(len(table)) % 2 == 0
    apart[:, 1] = ~apart[:, 0]
    one, _ = fit_canonical_cosine(table.with_mask(apart), shared_and_separate(1))
    vectors = vectors_of(one, table)
    left, right = one.pair_vectors("image", "text", vectors[0], vectors[1])
    assert not bool((left @ right.T).any())
    left, right = one.pair_vectors("image", "name", vectors[0], vectors[3])
    assert bool((left @ right.T).any())


def test_pairs_of_a_group_have_weights_of_their_own() -> None:
    total, record = stack(
        {k: v for k, v in KINDS.items() if k != "sum"}, shared_and_separate(1), shared_and_separate(1).first_rows(), [(0, 1)]
    )
    assert [part["pairs"][0] for part in record["weights"]] == ["image-text", "image-sound"]
    inside, outside = (part["weights"] for part in record["weights"])
    assert inside["raw"] + inside["centred"] + inside["shared"] > 0
    assert outside["raw"] == outside["shared"] == 0.0
    assert outside["canonical"] > 0
    assert isinstance(total, Sum)
    assert record["validation_mrr"] > 0.2


def test_without_validation_items_the_first_part_stands_alone() -> None:
    validation = shared_and_separate(1).select(np.arange(1))
    parts: dict[str, Any] = {"canonical": KINDS["canonical"], "raw": KINDS["raw"]}
    total, record = stack(parts, validation, validation.first_rows())
    ((weighted, weight),) = total.parts
    assert isinstance(weighted, PairWeighted)
    assert weighted.part is KINDS["canonical"]
    assert weight == 1.0
    assert record["validation_mrr"] == 0.0


def test_without_validation_items_a_group_is_compared_as_its_features_come() -> None:
    table, validation = shared_and_separate(), shared_and_separate(1).select(np.arange(1))
    assert shared_groups(table, validation) == [(0, 1)]
    parts: dict[str, Any] = {"canonical": KINDS["canonical"], FeatureCosine.name: KINDS["raw"]}
    total, _ = stack(parts, validation, validation.first_rows(), [(0, 1)])
    weights = {part.part.name: part.weights for part, _ in total.parts if isinstance(part, PairWeighted)}
    assert float(weights[FeatureCosine.name][0, 1]) == 1.0
    assert float(weights["canonical-cosine"][0, 1]) == 0.0
    assert float(weights["canonical-cosine"][0, 2]) == 1.0


@pytest.mark.parametrize("name", KINDS)
def test_features_in_half_precision_are_compared_in_full(name: str) -> None:
    table = shared_and_separate(2, n=10)
    half = [part.half() for part in table.first_rows()]
    for modality, rows in zip(NAMES, half, strict=True):
        exact = KINDS[name].vectors(modality, rows.float(), rows.float())
        torch.testing.assert_close(KINDS[name].vectors(modality, rows, rows), exact, rtol=1e-6, atol=1e-6)


def test_parts_of_a_stack_keep_their_names() -> None:
    named = weighted_parts(KINDS["sum"])
    assert len(named) == len(KINDS["sum"].parts)
    assert len({name for name, _ in named}) > 1
    assert all(name.endswith(", weighted by pair") for name, _ in named)
