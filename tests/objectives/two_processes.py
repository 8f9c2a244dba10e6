"""One of several processes that train as one: python two_processes.py RANK COUNT STORE OUT (or RANK 0, COUNT 1: alone)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from calmrl_lab.data.patterns import observe
from calmrl_lab.objectives import objectives
from calmrl_lab.ppca.distributed_statistics import agreed_shift, pooled
from calmrl_lab.ppca.statistics import Statistics, observed_means
from calmrl_lab.runtime.distributed import Batch, average_gradients, gather_batch, total

NAMES = ("vision", "audio", "caption")
ITEMS, DIM, RAW = 13, 6, 9


def imputer_statistics(rank: int, count: int) -> dict[str, torch.Tensor]:
    """Of 60 items, a third for the first of two processes: a pattern with many items, one with few, one that only one process sees."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(60, DIM, generator=generator, dtype=torch.float64) + 3 for _ in NAMES]
    mask = torch.ones(60, 3, dtype=torch.bool)
    mask[[2, 30, 40], 0] = False
    mask[50:, 1:] = False
    rows = slice(None) if count == 1 else (slice(0, 20) if rank == 0 else slice(20, 60))
    data = observe([part[rows] for part in values], mask[rows], NAMES)
    own = Statistics.of(data, agreed_shift(observed_means(data)))
    whole = pooled(own)
    found = {"statistics/kept": torch.tensor([len(part.rows) for part in whole.patterns.values()])}
    # Means and covariances do not depend on the shift, which does on who saw what.
    for observed, sums in whole.patterns.items():
        shift = torch.cat([whole.shift[j] for j in observed])
        label = "".join(map(str, observed))
        mean = sums.total / sums.weight + shift
        centred = sums.dense() / sums.weight - torch.outer(mean - shift, mean - shift)
        found[f"statistics/{label}"] = torch.cat([torch.tensor([sums.count, sums.weight]), mean, centred.flatten()])
    return found


def main(rank: int, count: int, store: str, out: str) -> None:
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ITEMS, 3, RAW, generator=generator, dtype=torch.float64)
    mask = torch.rand(ITEMS, 3, generator=generator) < 0.7
    mask[:, 2] |= ~mask.any(dim=1)
    imputed = torch.randn(ITEMS, 3, DIM, generator=generator, dtype=torch.float64)
    start = torch.randn(3, RAW, DIM, generator=generator, dtype=torch.float64)
    groups = torch.arange(ITEMS) // 2
    # 13 items for two processes: the second has one less than the first.
    share = slice(rank * 7, min((rank + 1) * 7, ITEMS)) if count > 1 else slice(None)
    results = {"total": total(torch.tensor([float(rank + 1)]))}
    for name in objectives:
        heads = torch.nn.Parameter(start.clone())
        objective = objectives.get(name)(NAMES, DIM).double()
        optimiser = torch.optim.AdamW([heads, *objective.parameters()], lr=1e-2)
        for _ in range(2):
            embedded = torch.nn.functional.normalize(torch.einsum("nkr,krd->nkd", features[share], heads), dim=2)
            own = Batch(embedded, mask[share], imputed[share], groups[share])
            terms = objective(*gather_batch(own, ITEMS))
            optimiser.zero_grad()
            terms["loss"].backward()
            average_gradients([heads, *objective.parameters()])
            optimiser.step()
        results |= {f"{name}/{term}": value.detach() for term, value in terms.items()}
        results[f"{name}/heads"] = heads.detach()
        results |= {f"{name}/{key}": value for key, value in objective.state_dict().items()}
    results |= imputer_statistics(rank, count)
    torch.save(results, out)
    if count > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], str(Path(sys.argv[4])))
