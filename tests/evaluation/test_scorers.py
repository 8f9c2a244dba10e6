"""Scorers against plain per-pair formulations, and the contract that every one of them keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.retrieval import rank_items
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.model.feature_map import identities
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Sum
from calmrl_lab.model.stacked.canonical_cosine import CanonicalCosine
from calmrl_lab.objectives import objectives
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import make_scorer

NAMES = ("vision", "audio", "subtitle")
DIM = 6


def unit(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def cone(seed, q=5, g=9, k=3):
    """Queries and items that lean the same way, as embeddings do, with random gaps; every item shows something."""
    generator = torch.Generator().manual_seed(seed)
    centre = unit(generator, DIM)
    queries, items = (
        torch.nn.functional.normalize(centre + unit(generator, *shape), dim=-1) for shape in ((q, DIM), (g, k, DIM))
    )
    mask = torch.rand(g, k, generator=generator) < 0.6
    mask[torch.arange(g), torch.randint(k, (g,), generator=generator)] = True
    return queries, items, mask


@pytest.fixture(scope="module")
def ppca():
    generator = torch.Generator().manual_seed(9)
    data = [unit(generator, 400, DIM) for _ in range(4)]
    shared = unit(generator, 400, DIM)
    imputer = PPCA(latent_dim=3)
    imputer.modalities = ("caption", *NAMES)
    return imputer.fit([0.5 * z + shared for z in data], torch.rand(400, 4, generator=generator) < 0.8, iterations=5)


@pytest.fixture(scope="module")
def vast():
    """A fusion that is not the mean it starts as."""
    objective = objectives.get("vast")(("caption", *NAMES), DIM).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in objective.fusion.weights:
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return objective


# Half of a vector that a sum compares is an information vector, the rest an embedding.
LATENT = DIM // 2
TESTED = (
    "cosine:audio", "centroid", "query-centroid", "volume", "area", "singular-value", "anchor", "imputer-likelihood", "fused", "likelihood-ratio",
    "likelihood-ratio:audio", "sum", "canonical-cosine", "multilinear", "objective",
)  # fmt: skip


def latent_maps(seed=3, dims=(4, 5, 3, 2), q=LATENT):
    """PPCA of features of the four modalities: weights, noise, and the maps they give."""
    draw = np.random.default_rng(seed)
    weights, noise = [draw.normal(size=(d, q)) for d in dims], draw.uniform(0.2, 2, len(dims))
    scaled = tuple(torch.from_numpy(w / s) for w, s in zip(weights, noise, strict=True))
    precisions = torch.stack([torch.from_numpy(w.T @ w / s) for w, s in zip(weights, noise, strict=True)])
    centres = tuple(torch.zeros(d, dtype=torch.float64) for d in dims)
    return weights, noise, LatentMaps(("caption", *NAMES)[: len(dims)], centres, scaled, precisions)


def ratio(q=LATENT, dims=(4, 5, 3, 2)):
    """The likelihood ratio under that model."""
    return LikelihoodRatio(latent_maps(dims=dims, q=q)[2], identities(dims))


def summed(weight=7.0):
    """The same plus `weight` times the cosine of embeddings of the other half."""
    return Sum(((ratio(), 1.0), (Cosine(DIM - LATENT), weight)))


def canonical():
    """The cosine of canonical variates of the four modalities: the items are the variates."""
    names = ("caption", *NAMES)
    empty = tuple(torch.zeros(DIM, dtype=torch.float64) for _ in names)
    return CanonicalCosine(
        names, empty, tuple(torch.eye(DIM, dtype=torch.float64) for _ in names), identities([DIM] * len(names))
    )


def trained(name):
    """An objective away from its start."""
    objective = objectives.get(name)(("caption", *NAMES), DIM).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return objective


@pytest.fixture(params=TESTED)
def scorer(request, ppca, vast):
    kind = request.param.partition(":")[0]
    objective = trained("comm") if kind == "objective" else vast
    similarity = {"sum": summed, "canonical-cosine": canonical}.get(kind, lambda: ratio(DIM))()
    parts = {"imputer": ppca, "objective": objective, "similarity": similarity}
    names = NAMES[:2] if request.param == "area" else NAMES
    return make_scorer(request.param, "caption", names, parts)


def test_every_scorer_is_tested():
    assert set(scorers) == {name.partition(":")[0] for name in TESTED}


class TestEveryScorer:
    def case(self, scorer, seed):
        queries, items, mask = cone(seed, k=len(scorer.modalities))
        return queries, items, mask

    @pytest.mark.parametrize("seed", range(4))
    def test_what_is_hidden_cannot_change_a_score(self, scorer, seed):
        queries, items, mask = self.case(scorer, seed)
        spoiled = items.masked_fill(~mask.unsqueeze(-1), float("nan"))
        torch.testing.assert_close(scorer.score(queries, spoiled, mask), scorer.score(queries, items, mask), rtol=0, atol=0)

    def test_a_score_depends_on_its_own_pair_only(self, scorer):
        queries, items, mask = self.case(scorer, 5)
        whole = scorer.score(queries, items, mask)
        for i, j in ((0, 0), (3, 7), (4, 2)):
            alone = scorer.score(queries[i : i + 1], items[j : j + 1], mask[j : j + 1])
            torch.testing.assert_close(alone[0, 0], whole[i, j], rtol=1e-9, atol=1e-9)

    def test_an_item_that_shows_nothing_comes_last(self, scorer):
        queries, items, mask = self.case(scorer, 6)
        mask[4] = False
        scores = scorer.score(queries, items, mask)
        assert torch.isneginf(scores[:, 4]).all()
        assert not torch.isnan(scores).any()
        assert not scorer.serves(mask)[4]

    def test_ranks_equal_a_plain_sort(self, scorer):
        queries, items, mask = self.case(scorer, 7)
        queries, items, mask = queries.repeat(2, 1), items.repeat(2, 1, 1), mask.repeat(2, 1)
        mask[[2, 5]] = False
        query_owner, item_owner = torch.arange(10) % 7, torch.arange(18) % 8
        forward, backward = rank_items(scorer, queries, query_owner, items, mask, item_owner, tile=4)
        scores = scorer.score(queries, items, mask).numpy()
        served = scorer.serves(mask).numpy()
        for i in range(10):
            own = (item_owner == query_owner[i]).numpy()
            best = scores[i][own].max()
            close = (np.abs(scores[i] - best) <= 1e-7) if np.isfinite(best) else np.isneginf(scores[i])
            assert forward.greater[i] == ((scores[i] > best) & ~close).sum()
            assert forward.equal[i] == (close & ~own).sum()
            assert forward.positives[i] == own.sum()
            assert forward.best_positives[i] == (close & own).sum()
        assert (forward.candidates == 18).all()
        for j in range(18):
            own = (query_owner == item_owner[j]).numpy()
            if not own.any():
                assert (backward.greater[j], backward.equal[j], backward.positives[j]) == (0, 0, 0)
                continue
            best = scores[:, j][own].max()
            # An item that shows nothing can only guess among all queries.
            close = np.abs(scores[:, j] - best) <= 1e-7 if served[j] else np.ones(10, dtype=bool)
            assert backward.greater[j] == ((scores[:, j] > best) & ~close).sum()
            assert backward.equal[j] == (close & ~own).sum()

    def test_a_perfect_copy_is_the_best_answer(self, scorer):
        if scorer.name in ("imputer-likelihood", "fused", "likelihood-ratio", "sum", "canonical-cosine"):
            pytest.skip("a likelihood asks what is likely, a trained fusion what it was taught; not what is equal")
        queries, items, mask = self.case(scorer, 8)
        items[3], mask[3] = queries[0], True
        assert scorer.score(queries, items, mask)[0].argmax() == 3

    def test_shapes_that_disagree_are_refused(self, scorer):
        queries, items, mask = self.case(scorer, 0)
        with pytest.raises(CalmrlError, match=f"scorer '{scorer.name}' needs"):
            scorer.score(queries, items[:, :1], mask[:, :1])
        with pytest.raises(CalmrlError, match="needs"):
            scorer.score(queries[:, :3], items, mask)

    def test_one_vector_an_item_gives_the_same_scores(self, scorer):
        queries, items, mask = self.case(scorer, 3)
        if not scorer.items_are_vectors:
            with pytest.raises(CalmrlError, match="no vector per item"):
                scorer.vectors(items, mask)
            return
        served = scorer.serves(mask)
        products = (queries @ scorer.vectors(items, mask).T)[:, served]
        torch.testing.assert_close(products, scorer.score(queries, items, mask)[:, served], rtol=1e-10, atol=1e-12)


def pairs(queries, items, mask):
    for i, t in enumerate(queries):
        for j, (z, shown) in enumerate(zip(items, mask, strict=True)):
            yield i, j, t, z[shown]


@given(st.integers(0, 9999), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_set_scores_equal_their_definitions(seed, k):
    queries, items, mask = cone(seed, q=3, g=5, k=k)
    names = [f"m{j}" for j in range(k)]
    made = {
        name: make_scorer(name, "t", names).score(queries, items, mask)
        for name in ("centroid", "query-centroid", "volume", "singular-value", "anchor")
    }
    made["share"] = make_scorer("singular-value", "t", names, share=True).score(queries, items, mask)
    made["root"] = make_scorer("volume", "t", names, per_modality=True).score(queries, items, mask)
    for i, j, t, z in pairs(queries, items, mask):
        together = torch.cat([t[None], z])
        values = torch.linalg.svdvals(together)
        weights = ((z @ t) / 0.1).softmax(dim=0)
        mean = weights @ z
        u = torch.linalg.svd(z.T)[0][:, 0]
        volume = values.prod() if len(together) <= DIM else torch.zeros(())
        expected = {
            "centroid": t @ z.mean(dim=0) / z.mean(dim=0).norm(),
            "query-centroid": t @ mean / mean.norm(),
            "volume": -volume,
            "root": -(volume ** (1 / len(z))),
            "singular-value": values[0],
            "share": values[0] ** 2 / len(together),
            "anchor": (t @ u) * torch.sign(u @ z.sum(dim=0)),
        }
        if abs(u @ z.sum(dim=0)) < 1e-6:
            del expected["anchor"]  # two vectors on opposite sides: their anchor is across their sum, and has no side
        for name, value in expected.items():
            assert made[name][i, j].item() == pytest.approx(value.item(), abs=1e-8), name


def test_the_fused_score_is_the_map_of_the_combination_shown(vast):
    queries, items, mask = cone(5)
    scores = make_scorer("fused", "caption", NAMES, objective=vast).score(queries, items, mask)
    maps = dict(zip(vast.fusion.subsets, vast.fusion.weights, strict=True))
    for i, j, t, z in pairs(queries, items, mask):
        shown = tuple(mask[j].nonzero().flatten().tolist())
        vector = torch.cat(list(z)) @ maps[shown].detach() if len(shown) > 1 else z[0]
        assert scores[i, j].item() == pytest.approx((t @ vector / vector.norm()).item(), abs=1e-12)
    # Another order of the same modalities, and one of them left out.
    order = [2, 0]
    fewer = make_scorer("fused", "caption", [NAMES[j] for j in order], objective=vast)
    hidden = mask.clone()
    hidden[:, 1] = False
    whole = make_scorer("fused", "caption", NAMES, objective=vast)
    torch.testing.assert_close(fewer.score(queries, items[:, order], mask[:, order]), whole.score(queries, items, hidden))


def test_fusion_heads_serve_what_they_were_trained_for(vast):
    for query, names, objective, said in (
        ("caption", NAMES, None, "needs fusion heads"),
        ("caption", NAMES, objectives.get("clip")(("caption", *NAMES), DIM), "needs fusion heads"),
        ("vision", NAMES, vast, "trained for queries of 'caption', not of 'vision'"),
        ("caption", ("vision", "sound"), vast, "take no modality 'sound'"),
    ):
        with pytest.raises(CalmrlError, match=said):
            make_scorer("fused", query, names, objective=objective)


def test_the_leading_singular_value_of_copies_and_of_orthogonal_sets():
    eye = torch.eye(4, dtype=torch.float64)
    items = torch.stack([eye[[0, 0, 0]], eye[[1, 2, 3]], eye[[0, 1, 1]]])
    scores = make_scorer("singular-value", "t", NAMES).score(eye[:2], items, torch.ones(3, 3, dtype=torch.bool))
    expected = [[torch.linalg.svdvals(torch.cat([t[None], z]))[0].item() for z in items] for t in eye[:2]]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-12)


def test_the_area_is_heron_s():
    queries, items, _ = cone(1, k=2)
    scores = make_scorer("area", "t", ["a", "b"]).score(queries, items, torch.ones(9, 2, dtype=torch.bool))
    for i, j, t, z in pairs(queries, items, torch.ones(9, 2, dtype=torch.bool)):
        a, b, c = (t - z[0]).norm(), (t - z[1]).norm(), (z[0] - z[1]).norm()
        half = (a + b + c) / 2
        assert -scores[i, j].item() == pytest.approx((half * (half - a) * (half - b) * (half - c)).sqrt().item(), abs=1e-9)


def test_an_item_of_one_modality_ranks_by_its_cosine():
    # Sets of two vectors: every set score is a function of the one cosine there is (volume and singular value of its square).
    queries, items, _ = cone(2, q=4, g=8, k=1)
    queries, items = queries * torch.sign(queries[:, :1]), items
    mask = torch.ones(8, 1, dtype=torch.bool)
    cosine = make_scorer("cosine", "t", ["m"]).score(queries, items, mask)
    for name in ("centroid", "query-centroid", "anchor"):
        torch.testing.assert_close(make_scorer(name, "t", ["m"]).score(queries, items, mask), cosine)
    for name in ("volume", "singular-value"):
        order = make_scorer(name, "t", ["m"]).score(queries, items, mask).argsort(dim=1)
        assert torch.equal(order, cosine.abs().argsort(dim=1))
    hidden = torch.tensor([[True, False]]).expand(8, 2)
    wide = torch.cat([items, torch.zeros_like(items)], dim=1)
    assert torch.equal(make_scorer("area", "t", ["m", "n"]).score(queries, wide, hidden).argsort(dim=1), cosine.argsort(dim=1))


def test_more_modalities_shrink_volumes():
    queries, items, _ = cone(3)
    everything = torch.ones(9, 3, dtype=torch.bool)
    fewer = everything.clone()
    fewer[:, 2] = False
    volume = make_scorer("volume", "t", NAMES)
    assert (volume.score(queries, items, everything) >= volume.score(queries, items, fewer)).all()


def test_the_likelihood_is_that_of_the_dense_gaussian(ppca):
    queries, items, mask = cone(4)
    scores = make_scorer("imputer-likelihood", "caption", NAMES, imputer=ppca).score(queries, items, mask)
    weights = torch.from_numpy(np.concatenate(ppca.weights))
    mean = torch.from_numpy(np.concatenate(ppca.means))
    noise = torch.from_numpy(np.repeat(ppca.noise, [len(mu) for mu in ppca.means]))
    covariance = weights @ weights.T + torch.diag(noise)

    def density(values, places):
        normal = torch.distributions.MultivariateNormal(mean[places], covariance[places][:, places])
        return normal.log_prob(values).item()

    block = [torch.arange(j * DIM, (j + 1) * DIM) for j in range(4)]
    for i, (j, shown) in ((i, (j, shown)) for i in range(5) for j, shown in enumerate(mask)):
        places = torch.cat([block[1 + m] for m in shown.nonzero().squeeze(1).tolist()])
        seen = items[j][shown].reshape(-1)
        joint = density(torch.cat([queries[i], seen]), torch.cat([block[0], places]))
        assert scores[i, j].item() == pytest.approx(joint - density(seen, places) - density(queries[i], block[0]), abs=1e-7)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_scorer("centriod", "t", NAMES), "unknown scorer 'centriod'; did you mean 'centroid'?"),
        (lambda: make_scorer("cosine", "t", NAMES), "items have 3"),
        (lambda: make_scorer("cosine:visio", "t", NAMES), "no modality 'visio'; did you mean 'vision'?"),
        (lambda: make_scorer("area", "t", NAMES), "exactly two modalities, got 3"),
        (lambda: make_scorer("centroid:vision", "t", NAMES), "unexpected keyword argument 'modality'"),
        (lambda: make_scorer("query-centroid", "t", NAMES, temperature=0), "temperature is 0"),
        (lambda: make_scorer("imputer-likelihood", "t", NAMES), "needs a fitted PPCA"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(call, said):
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        call()


def test_the_likelihood_names_a_modality_it_does_not_know(ppca):
    with pytest.raises(CalmrlError, match="no modality 'smell'"):
        make_scorer("imputer-likelihood", "smell", NAMES, imputer=ppca)


@pytest.mark.parametrize("shown", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_a_likelihood_ratio_with_a_set_is_the_log_density_ratio_of_the_joint_gaussian(shown):
    weights, noise, maps = latent_maps()
    draw = np.random.default_rng(1)
    x = [draw.normal(size=(3, len(w))) for w in weights]
    vectors = torch.stack([maps.information_vector(j, torch.from_numpy(part)) for j, part in enumerate(x)], dim=1)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[:, list(shown)] = True
    blocks = [0, *(j + 1 for j in shown)]

    def density(places, values):
        stacked = np.concatenate([weights[j] for j in places])
        diagonal = np.concatenate([np.full(len(weights[j]), noise[j]) for j in places])
        return multivariate_normal(np.zeros(len(stacked)), stacked @ stacked.T + np.diag(diagonal)).logpdf(values)

    found = make_scorer("likelihood-ratio", "caption", NAMES, similarity=ratio()).score(vectors[:, 0], vectors[:, 1:], mask)
    for i, j in np.ndindex(3, 3):
        item = np.concatenate([x[b][j] for b in blocks[1:]])
        together = density(blocks, np.concatenate([x[0][i], item]))
        assert found[i, j].item() == pytest.approx(together - density([0], x[0][i]) - density(blocks[1:], item))


def test_a_sum_adds_the_weighted_cosine_with_the_mean_of_what_is_shown():
    queries, items, mask = cone(4)
    alone = make_scorer("likelihood-ratio", "caption", NAMES, similarity=ratio())
    expected = alone.score(queries[:, :LATENT], items[:, :, :LATENT], mask)
    cosine = make_scorer("centroid", "caption", NAMES).score(queries[:, LATENT:], items[:, :, LATENT:], mask)
    found = make_scorer("sum", "caption", NAMES, similarity=summed()).score(queries, items, mask)
    torch.testing.assert_close(found, expected + 7 * cosine)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("likelihood-ratio", {}, "needs a model that can compare by similarity 'likelihood-ratio'"),
        ("sum", {"similarity": ratio()}, "needs a model that can compare by similarity 'sum'"),
        ("likelihood-ratio:smell", {"similarity": ratio()}, "no modality 'smell'"),
        ("overlap", {}, "unknown scorer 'overlap'"),
    ],
)
def test_likelihood_ratios_that_make_no_sense_are_one_sentence(name, options, said):
    with pytest.raises(CalmrlError, match=said):
        make_scorer(name, "caption", NAMES, **options)


def test_multilinear_product_against_loops():
    """Symile's score of queries and items that show any subset of three modalities: a product coordinate by coordinate."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=1)
    items = torch.nn.functional.normalize(torch.randn(9, 3, 6, generator=generator, dtype=torch.float64), dim=2)
    mask = torch.tensor([[bool(n >> m & 1) for m in range(3)] for n in range(8)] + [[True, True, True]])
    scorer = make_scorer("multilinear", "caption", ("vision", "audio", "subtitle"))
    found, vectors = scorer.score(queries, items, mask), scorer.vectors(items, mask)
    for i, query in enumerate(queries):
        for j, (item, shown) in enumerate(zip(items, mask, strict=True)):
            if not shown.any():
                assert found[i, j] == -torch.inf
                continue
            total = 0.0
            for c in range(6):
                product = float(query[c])
                for m in range(3):
                    product *= float(item[m, c]) if shown[m] else 1.0
                total += product
            total *= 6 ** ((int(shown.sum()) - 1) / 2)
            assert float(found[i, j]) == pytest.approx(total, abs=1e-12)
            assert float(query @ vectors[j]) == pytest.approx(total, abs=1e-12)
    assert (vectors[~mask.any(dim=1)] == 0).all()


@pytest.mark.parametrize("name", ["comm", "confu", "gated-symile"])
def test_the_score_that_an_objective_trains_against_loops(name):
    objective = trained(name)
    queries, items, mask = cone(11)
    mask[3] = False
    found = make_scorer("objective", "caption", NAMES, {"objective": objective}).score(queries, items, mask)

    def unit_of(vector):
        return vector / vector.norm()

    def comm(vectors):
        h = torch.stack([z @ objective.fusion.maps[m] + objective.fusion.places[m] for m, z in vectors.items()]).mean(dim=0)
        return unit_of(h + torch.nn.functional.gelu(h @ objective.fusion.inner) @ objective.fusion.outer)

    def confu(shown):
        if len(shown) == 1:
            return next(iter(shown.values()))
        heads = dict(zip(objective.pairs, objective.heads, strict=True))
        made = []
        for (a, b), head in heads.items():
            if a in shown and b in shown:
                hidden = torch.relu(torch.cat([shown[a], shown[b]]) @ head.inner + head.inner_bias)
                made.append(unit_of(torch.nn.functional.leaky_relu(hidden @ head.outer + head.outer_bias, 0.2)))
        return unit_of(sum(made))

    def gated(query, shown):
        gate, others = objective.gate, torch.tensor([[m in shown for m in range(4)]])
        wide = torch.stack([shown.get(m, torch.zeros_like(query)) for m in range(4)])[None]
        turned, product = gate(0, query[None], wide, others)[0], query
        for m in shown:
            product = product * turned[m]
        return product.sum() * DIM ** (len(shown) / 2)

    for i, query in enumerate(queries):
        for j, (item, seen) in enumerate(zip(items, mask, strict=True)):
            shown = {m + 1: item[m] for m in range(3) if seen[m]}
            if not shown:
                assert found[i, j] == -torch.inf
                continue
            expected = {
                "comm": lambda q=query, s=shown: comm({0: q}) @ comm(s),
                "confu": lambda q=query, s=shown: q @ confu(s),
                "gated-symile": lambda q=query, s=shown: gated(q, s),
            }[name]()
            torch.testing.assert_close(found[i, j], expected.detach(), rtol=1e-9, atol=1e-9)


def test_an_objective_without_a_score_of_its_own():
    with pytest.raises(CalmrlError, match="needs an objective with a score of its own"):
        make_scorer("objective", "caption", NAMES, {"objective": trained("clip")})
