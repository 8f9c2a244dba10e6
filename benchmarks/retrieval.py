"""Exact ranks in both directions against a bare matrix product and against sorting every row, interleaved in one run.

    calmrl-lab bench retrieval            4,000 and 10,000 queries of dimension 512
    calmrl-lab bench retrieval --quick    1,000 and 3,000, in seconds
    calmrl-lab bench retrieval --large    also 100,000 x 100,000 (10 TFLOP: minutes)

"sort and look up" is what released evaluation code does: the whole similarity matrix, every row sorted, the right item looked up in
a Python list, then the same for the transpose (here a thousand rows at a time, which costs no time and saves gigabytes). Ratios are medians over rounds in which everybody takes turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from calmrl_lab.evaluation.retrieval import rank_both, rank_items
from calmrl_lab.runtime import console
from calmrl_lab.scorers.base import make_scorer

DIMENSION = 512
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Times the bare product, times as fast as sorting, extra memory in MB; all at 10,000.
TARGETS = {"vs product": 1.3, "vs sorting": 15.0, "memory MB": 50.0}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 and 3,000 queries")
    parser.add_argument("--large", action="store_true", help="also 100,000 x 100,000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.memory:
        print(json.dumps(alone(options.memory)))
        return
    small, big = (1000, 3000) if options.quick else (4000, 10_000)
    result = compare(small, big, options.repeats)
    result["scorers"] = scorers(500 if options.quick else 2000)
    if options.large:
        result["large"] = in_a_process(100_000)
    console.emit(result, options.json, lambda: show(result))


def compare(small: int, big: int, repeats: int) -> dict[str, Any]:
    timings = {}
    for n in (small, big):
        left, right = embeddings(n)
        owner = torch.arange(n)
        contenders: dict[str, Callable[[], Any]] = {
            "bare product": lambda left=left, right=right: bare_product(left, right),
            "both directions": lambda left=left, right=right, owner=owner: rank_both(left, right, owner, owner),
        }
        contenders["sort and look up"] = lambda left=left, right=right: sort_and_look_up(left, right)
        if n == small:
            check(contenders)
        timings[n] = interleaved(contenders, repeats if n == small else max(3, repeats - 2))
    memory = in_a_process(big) if RESET_PEAK.exists() else None
    return {
        "dimension": DIMENSION,
        "threads": torch.get_num_threads(),
        "seconds": {n: {name: summary(times) for name, times in found.items()} for n, found in timings.items()},
        "ratios": {
            f"vs {shown} at {n}": ratio(timings[n], slow, fast)
            for n in (small, big)
            for shown, slow, fast in (
                ("product", "both directions", "bare product"),
                ("sorting", "sort and look up", "both directions"),
            )
        },
        "memory": memory,
        "targets": TARGETS,
    }


def embeddings(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that find each other about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    left, noise = (torch.randn(n, DIMENSION, generator=generator) for _ in range(2))
    return torch.nn.functional.normalize(left, dim=1), torch.nn.functional.normalize(left + 4 * noise, dim=1)


def bare_product(left: torch.Tensor, right: torch.Tensor) -> None:
    """Every score once, in blocks of rows, and nothing done with it."""
    for start in range(0, len(left), 1024):
        left[start : start + 1024] @ right.T


def sort_and_look_up(left: torch.Tensor, right: torch.Tensor) -> list[list[int]]:
    """Rank of the right item for every query, both directions, by sorting."""
    ranks = []
    for matrix in (left @ right.T, right @ left.T):
        found: list[int] = []
        for rows in matrix.split(1000):
            order = rows.sort(dim=1, descending=True).indices.tolist()
            found += [row.index(own) for own, row in enumerate(order, start=len(found))]
        ranks.append(found)
    return ranks


def check(contenders: dict[str, Callable[[], Any]]) -> None:
    ours = [ranks.greater for ranks in contenders["both directions"]()]
    for own, other in zip(ours, contenders["sort and look up"](), strict=True):
        # Sorting float32 scores may swap a near tie.
        assert np.abs(own - np.array(other)).max() <= 2


def scorers(n: int) -> dict[str, float]:
    """Seconds for both directions of n queries and n items of three modalities, a third of their entries missing."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(n, DIMENSION, generator=generator), dim=1)
    items = torch.nn.functional.normalize(torch.randn(n, 3, DIMENSION, generator=generator), dim=2)
    mask = torch.rand(n, 3, generator=generator) < 0.67
    owner, names = torch.arange(n), ("vision", "audio", "subtitle")
    seconds = {}
    for name in ("centroid", "anchor", "query-centroid", "volume", "singular-value"):
        scorer = make_scorer(name, "caption", names)
        begun = time.perf_counter()
        rank_items(scorer, queries, owner, items, mask, owner)
        seconds[name] = time.perf_counter() - begun
    return {"queries": n, **seconds}


def in_a_process(n: int) -> dict[str, float]:
    """Seconds and extra memory of n x n ranks in a process that does nothing else."""
    done = subprocess.run([sys.executable, __file__, "--memory", str(n)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def alone(n: int) -> dict[str, float]:
    left, right = embeddings(n)
    owner = torch.arange(n)
    # Whatever libraries set up on their first call is no part of the job.
    rank_both(left[:64], right[:64], owner[:64], owner[:64])
    before = resident("VmRSS")
    RESET_PEAK.write_text("5")
    begun = time.perf_counter()
    rank_both(left, right, owner, owner)
    return {"queries": n, "seconds": time.perf_counter() - begun, "memory MB": resident("VmHWM") - before}


def resident(what: str) -> float:
    """Resident memory now (VmRSS) or at its peak (VmHWM) in MB, from Linux's own count."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1e3


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            begun = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - begun)
    return times


def ratio(timings: dict[str, list[float]], one: str, other: str) -> float:
    """Time of `one` over that of `other`: the median over rounds, in each of which both met the same machine."""
    return statistics.median(a / b for a, b in zip(timings[one], timings[other], strict=True))


def summary(times: list[float]) -> dict[str, float]:
    return {"min": min(times), "median": statistics.median(times)}


def show(result: dict[str, Any]) -> None:
    table = Table(
        box=None, pad_edge=False, title=f"dimension {result['dimension']}, {result['threads']} threads", title_justify="left"
    )
    for heading in ("queries", "contender", "min s", "median s"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for n, found in result["seconds"].items():
        for name, times in found.items():
            table.add_row(str(n), name, f"{times['min']:.3f}", f"{times['median']:.3f}")
    console.out.print(table)
    for name, value in result["ratios"].items():
        console.out.print(f"{name}: {value:.2f}")
    memory = result["memory"]
    measured = f"{memory['memory MB']:.0f} MB at {memory['queries']:.0f}" if memory else "not measured (needs Linux)"
    console.out.print(f"extra memory: {measured}")
    found = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["scorers"].items() if name != "queries")
    console.out.print(
        f"set scorers, {result['scorers']['queries']} queries and items, both directions: {found}", soft_wrap=True
    )
    if "large" in result:
        large = result["large"]
        console.out.print(
            f"{large['queries']:.0f} x {large['queries']:.0f}: {large['seconds']:.0f} s, {large['memory MB']:.0f} MB"
        )
    console.out.print(f"targets: {result['targets']}", soft_wrap=True)


if __name__ == "__main__":
    main()
