"""What only a GPU can show: the numbers of the CPU, and training steps for which the host never waits. Skipped where there is none."""

import copy
import itertools

import numpy as np
import pytest
import torch
from objectives.test_contract import NAMES, batch, build

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.spectrum import spectrum
from calmrl_lab.model.projection import Heads
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.volume import volumes
from calmrl_lab.runtime.distributed import Batch
from calmrl_lab.scorers.base import make_scorer
from calmrl_lab.training.online_imputer import OnlineImputer
from calmrl_lab.training.optimiser import StepMetrics, make_optimiser, update

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
GPU = torch.device("cuda")


@pytest.fixture(params=objectives.names())
def name(request):
    return request.param


def computed(objective, place, parts):
    """Terms, gradient of the embeddings and of the parameters, on the CPU."""
    objective = copy.deepcopy(objective).to(place)
    if objective.generator is not None:
        objective.generator.manual_seed(3)
    z, *rest = (None if part is None else part.to(place) for part in parts)
    z = z.detach().requires_grad_()
    terms = objective(z, *rest)
    terms["loss"].backward()
    gradients = {"embeddings": z.grad} | {key: value.grad for key, value in objective.named_parameters()}
    return {key: value.detach().cpu() for key, value in {**terms, **gradients}.items() if value is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("k", [2, 3, 4, 6])
@pytest.mark.parametrize("grouped", [False, True])
def test_values_and_gradients_are_those_of_the_cpu(name, k, dtype, tolerance, grouped):
    z, mask, imputed = batch(96, k, 32, seed=k)
    z, imputed = (torch.nn.functional.normalize(part + 0.3, dim=-1).to(dtype) for part in (z, imputed))
    groups = torch.arange(96) // 2 if grouped else None
    objective = build(name, k, 32).to(dtype)
    here, there = (computed(objective, place, (z, mask, imputed, groups)) for place in (torch.device("cpu"), GPU))
    assert here.keys() == there.keys()
    for key, value in here.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            there[key] / scale, value / scale, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_kernels_are_those_of_the_cpu(dtype, tolerance):
    mask = torch.tensor(list(itertools.product([False, True], repeat=4))).repeat(8, 1)
    z, _, _ = batch(len(mask), 4, 64)
    z = torch.nn.functional.normalize(z + 0.3, dim=-1).to(dtype)
    z[5, 2] = z[5, 3]
    found = []
    for place in (torch.device("cpu"), GPU):
        leaf = z.to(place).detach().requires_grad_()
        shown = leaf.masked_fill(~mask.to(place).unsqueeze(-1), 0.0)
        values, anchor = spectrum(leaf, mask.to(place))
        volume = volumes(shown[:, 0], shown[:, 1:], mask[:, 1:].to(place), 1e-6, paired=True)
        (values.sum() + anchor[:, 0].sum() + volume.mean()).backward()
        found.append([part.detach().cpu() for part in (values, anchor, volume, leaf.grad)])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=tolerance)


def test_scores_are_those_of_the_cpu():
    z, mask, _ = batch(64, 4, 32)
    z = torch.nn.functional.normalize(z + 0.3, dim=-1)
    for scorer in ("cosine:audio", "centroid", "query-centroid", "anchor", "volume", "singular-value"):
        made = make_scorer(scorer, "vision", NAMES[1:4])
        here, there = (
            made.score(z[:, 0].to(place), z[:, 1:].to(place), mask[:, 1:].to(place)).cpu()
            for place in (torch.device("cpu"), GPU)
        )
        torch.testing.assert_close(there, here, rtol=0, atol=1e-9)


class Session:
    """What `train-heads` puts together for its steps, on a GPU: a table of features, several captions per item, heads, PPCA, objective."""

    def __init__(self, name, items=2048, k=4, wide=48, dim=32):
        generator = torch.Generator().manual_seed(0)
        patterns = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, False], [True, True, False, True]])
        mask = patterns[torch.arange(items) % 4]
        rows, offsets = [], []
        for j in range(k):
            counts = mask[:, j].long() * (3 if j == 2 else 1)
            offsets.append(torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(GPU))
            rows.append(torch.randn(int(counts.sum()), wide, generator=generator).to(GPU))
        ids = np.array([f"i{i}" for i in range(items)])
        self.table = FeatureTable(NAMES[:k], ids, ids, tuple(rows), tuple(offsets), mask.to(GPU))
        self.heads = Heads(dict.fromkeys(NAMES[:k], wide), dim).to(GPU)
        self.objective = objectives.get(name)(NAMES[:k], dim).to(GPU)
        self.filler = OnlineImputer("ppca", {"latent_dim": 4}, NAMES[:k], self.table)
        with torch.no_grad():
            shown = self.heads(self.table.first_rows(), self.table.mask)
        self.filler.imputer = self.filler.noise_scaled = PPCA(latent_dim=4).fit(
            list(shown.unbind(1)), self.table.mask, iterations=2
        )
        self.parameters = [*self.heads.parameters(), *self.objective.parameters()]
        self.optimiser = make_optimiser(self.parameters, 1e-3, 0.01)
        self.groups = (torch.arange(items) // 2).to(GPU)
        self.journal = StepMetrics(GPU)
        self.broken = None

    def step(self, features):
        embeddings = self.heads(features.features, features.mask)
        imputed = self.filler.fill(embeddings, features.mask, features.host_mask)
        terms = self.objective(*Batch(embeddings, features.mask, imputed, self.groups[features.items]))
        for group in self.optimiser.param_groups:
            group["lr"] = 1e-3
        norm = update(terms["loss"], self.optimiser, self.parameters, 2.0)
        self.broken = self.broken or self.journal.write(self.journal.steps, features.items, terms, norm)


def test_the_host_never_waits_for_a_step(name):
    session = Session(name)
    batches = session.table.batches(256, torch.Generator().manual_seed(0))
    # The first steps send constants and allocate.
    for _ in range(3):
        session.step(next(batches))
    before = [parameter.detach().clone() for parameter in session.parameters]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for features in batches:
            session.step(features)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert session.journal.steps == 8
    assert session.journal.look() is None
    assert session.journal.idle() == 0
    assert any(not torch.equal(parameter, old) for parameter, old in zip(session.parameters, before, strict=True))


def test_a_broken_step_is_found_later_and_moves_nothing():
    session = Session("clip", items=512)
    batches = list(session.table.batches(128, torch.Generator().manual_seed(0)))
    session.step(batches[0])
    good = [parameter.detach().clone() for parameter in session.parameters]
    session.step(batches[1]._replace(features=[rows * torch.nan for rows in batches[1].features]))
    empty = torch.zeros_like(batches[2].mask)
    session.step(batches[2]._replace(mask=empty, host_mask=empty.cpu()))
    assert session.broken is None
    assert all(torch.equal(parameter, old) for parameter, old in zip(session.parameters, good, strict=True))
    broken = session.journal.look()
    assert (broken.step, broken.terms, broken.items.tolist()) == (1, ["loss"], batches[1].items.tolist())
    assert session.journal.idle() == 1
