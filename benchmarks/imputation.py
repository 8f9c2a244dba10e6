"""EM on statistics, its first pass and imputation against plain formulations and the PPCA packages of PyPI.

    calmrl-lab bench imputation                     four modalities of 512 dimensions, 64 latent ones: minutes, 6 GB of memory
    calmrl-lab bench imputation --quick             small sizes, in seconds
    calmrl-lab bench imputation --large             a million items are really passed over, and peers fit 1,024 dimensions
    calmrl-lab bench imputation --write docs/imputation.md     put the lines between the marks of a page
    calmrl-lab bench imputation --case pass         one case: iterates, iteration, flat, pass, evaluations, peers, imputation

Both sides of a ratio take turns in one process on one thread; ratios are medians over rounds. Sides that would take hours are
measured on fewer items and scaled (they are linear in the items); such lines say so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))

import _marks
import _script

from calmrl_lab.data.patterns import Observations, observe
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.em import Parameters, Totals, expect, iterate, maximise
from calmrl_lab.ppca.initialisation import pairwise_start
from calmrl_lab.ppca.statistics import Statistics
from calmrl_lab.runtime import console

SEED = 0


@dataclass(frozen=True)
class Size:
    k: int
    d: int
    q: int
    few: int
    many: int
    # Items that the row-wise side of the comparison really passes over.
    rows: int
    repeats: int


FULL = Size(k=4, d=512, q=64, few=10_000, many=300_000, rows=300_000, repeats=5)
QUICK = Size(k=4, d=64, q=16, few=2_000, many=30_000, rows=3_000, repeats=3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--large", action="store_true", help="pass over a million items, larger peers")
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this case; may be repeated")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the measured lines between the marks of this Markdown file"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        size = QUICK if options.quick else FULL
        lines = [line for name in options.case or CASES for line in CASES[name](size, options.large)]
    if options.write:
        mark = "-".join(["speed", *(options.case or []), *(["large"] if options.large else [])])
        _marks.put(options.write, mark, markdown(lines))
    console.emit({"size": vars(size), "results": lines}, options.json, lambda: show(lines, size))


def line(what: str, value: float | None, wanted: str, note: str = "") -> dict[str, Any]:
    return {"what": what, "value": value, "target": wanted, "note": note}


def timed(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every side in every round; sides take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def model(k: int, d: int, q: int) -> tuple[list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(SEED)
    return [rng.normal(size=(d, q)) / q**0.5 for _ in range(k)], rng


def items(n: int, k: int, d: int, q: int, kind: type = np.float32) -> tuple[list[np.ndarray], np.ndarray]:
    """Items of the model with all 2^k - 1 patterns equally frequent."""
    weights, rng = model(k, d, q)
    latent = rng.normal(size=(n, q)).astype(kind)
    values = [
        latent @ w.T.astype(kind) + 0.5 * rng.standard_normal(size=(n, d), dtype=np.float32).astype(kind) for w in weights
    ]
    codes = rng.permutation(np.arange(n) % (2**k - 1)) + 1
    return values, (codes[:, None] >> np.arange(k) & 1).astype(bool)


def start_of(k: int, d: int, q: int) -> Parameters:
    weights, rng = model(k, d, q)
    noisy = [torch.from_numpy(w + 0.3 * rng.normal(size=w.shape)) for w in weights]
    return Parameters(torch.cat(noisy), torch.zeros(k * d, dtype=torch.float64), torch.full((k,), 0.5, dtype=torch.float64))


def rows_step(data: Observations, parameters: Parameters) -> Parameters:
    """One EM iteration over the rows, batched by pattern: the plain formulation that is vectorised well."""
    dims, k, q = data.dims, len(data.dims), parameters.weights.shape[1]
    weights, means = parameters.weights.split(dims), parameters.mean.split(dims)
    square = torch.zeros(k, q + 1, q + 1, dtype=torch.float64)
    cross = [torch.zeros(d, q + 1, dtype=torch.float64) for d in dims]
    energy, count = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    for pattern in data.patterns():
        shown, n = pattern.observed, len(pattern.rows)
        z = [data.values[j][pattern.rows].double() for j in shown]
        precision = torch.eye(q, dtype=torch.float64)
        b = torch.zeros(n, q, dtype=torch.float64)
        for j, value in zip(shown, z, strict=True):
            scaled = weights[j] / parameters.noise[j]
            precision += weights[j].T @ scaled
            b += (value - means[j]) @ scaled
        variance = torch.linalg.inv(precision)
        latent = torch.cat([b @ variance, torch.ones(n, 1, dtype=torch.float64)], dim=1)
        moment = latent.T @ latent
        moment[:q, :q] += n * variance
        for j, value in zip(shown, z, strict=True):
            square[j] += moment
            cross[j] += value.T @ latent
            energy[j] += value.square().sum()
            count[j] += n
    joint = [torch.linalg.solve(square[j], cross[j].T).T for j in range(k)]
    noise = torch.stack([(energy[j] - (joint[j] * cross[j]).sum()) / (count[j] * dims[j]) for j in range(k)])
    return Parameters(torch.cat([w[:, :q] for w in joint]), torch.cat([w[:, q] for w in joint]), noise)


def items_step(data: Observations, parameters: Parameters) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The E-step of EM item by item: what a straightforward implementation does."""
    weights, means = parameters.weights.split(data.dims), parameters.mean.split(data.dims)
    q = parameters.weights.shape[1]
    result = []
    for i, row in enumerate(data.mask.tolist()):
        precision, b = torch.eye(q, dtype=torch.float64), torch.zeros(q, dtype=torch.float64)
        for j, shows in enumerate(row):
            if shows:
                precision += weights[j].T @ weights[j] / parameters.noise[j]
                b += weights[j].T @ (data.values[j][i].double() - means[j]) / parameters.noise[j]
        variance = torch.linalg.inv(precision)
        mean = variance @ b
        result.append((mean, variance + torch.outer(mean, mean)))
    return result


def statistics_step(held: Statistics, totals: Totals, parameters: Parameters) -> Parameters:
    return maximise(held.dims, totals, expect(held, totals, parameters))


def iterates(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, 24, 6
    values, mask = items(600, k, d, q, np.float64)
    data = observe(values, mask)
    held = Statistics.of(data, [torch.zeros(d, dtype=torch.float64)] * k)
    totals, ours, theirs = Totals.of(held), start_of(k, d, q), start_of(k, d, q)
    for _ in range(5):
        ours, theirs = statistics_step(held, totals, ours), rows_step(data, theirs)
    gap = max(float((a - b).abs().max()) for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True))
    return [line("largest difference of iterates after 5 EM steps", gap, "<= 1e-10")]


def iteration(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, size.d, size.q
    n = size.rows
    data = observe(*items(n, k, d, q))
    some = data.take(torch.arange(200))
    held = Statistics.of(data)
    totals, parameters = Totals.of(held), start_of(k, d, q)
    sides = {
        "statistics": lambda: statistics_step(held, totals, parameters),
        "rows": lambda: rows_step(data, parameters),
        "items": lambda: items_step(some, parameters),
    }
    seconds = timed(sides, size.repeats)
    scaled = f"rows on {n:,}, items on 200" + ("" if n == size.many else f", scaled to {size.many:,}")
    return [
        line("seconds of an EM iteration on statistics", statistics.median(seconds["statistics"]), ""),
        line("times faster than batched rows", ratio(seconds, "rows", "statistics") * size.many / n, ">= 80", scaled),
        line("times faster than item by item", ratio(seconds, "items", "statistics") * size.many / 200, ">= 1000", scaled),
    ]


def flat(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, size.d, size.q
    few, many = size.few, 1_000_000 if large else 4 * size.few
    parameters = start_of(k, d, q)
    chunk = observe(*items(size.few, k, d, q))
    sides = {}
    for name, n in (("few", few), ("many", many)):
        # The same items again and again: what they are does not matter to the time.
        held = Statistics.of(chunk)
        for _ in range(n // few - 1):
            held.add(chunk)
        totals = Totals.of(held)
        sides[name] = lambda held=held, totals=totals: statistics_step(held, totals, parameters)
    seconds = timed(sides, max(size.repeats, 7))
    return [line(f"time of an iteration, {many:,} items over {few:,}", ratio(seconds, "many", "few"), "<= 1.15")]


def first_pass(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, size.d, size.q
    n = 16384
    values, _ = items(n, k, d, q)
    data = observe(values, np.ones((n, k), dtype=bool))
    stacked = torch.from_numpy(np.concatenate(values, axis=1))

    def product() -> None:
        for block in stacked.split(8192):
            block.T @ block

    seconds = timed({"pass": lambda: Statistics.of(data), "product": product}, size.repeats)
    return [
        line(
            "statistics pass over the matrix product of its shape",
            ratio(seconds, "pass", "product"),
            "<= 1.0",
            f"{n:,} complete items",
        )
    ]


def evaluations(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, min(size.d, 128), min(size.q, 32)
    n, cap = (20_000, 200) if size is FULL else (4_000, 100)
    values, _ = items(n, k, d, q)
    rng = np.random.default_rng(SEED)
    mask = rng.random((n, k)) < 0.6
    mask[np.arange(n), rng.integers(k, size=n)] = True
    held = Statistics.of(observe(values, mask))
    totals = Totals.of(held)
    random = Parameters(
        torch.from_numpy(rng.normal(size=(k * d, q)) / d**0.5),
        torch.zeros(k * d, dtype=torch.float64),
        totals.scatter / totals.count / d,
    )
    starts = {"pairwise moments": pairwise_start(held, totals, q), "random": random}
    paths = {name: iterate(held, totals, begun, cap)[1] for name, begun in starts.items()}
    paths["pairwise, SQUAREM"] = iterate(held, totals, starts["pairwise moments"], cap // 2, accelerate=True)[1]
    best = max(max(path) for path in paths.values()) / n
    result = []
    for name, path in paths.items():
        near = [turn + 1 for turn, value in enumerate(path) if value / n > best - 0.1]
        note = "" if near else f"not within {len(path)}"
        target = "<= 10" if "pairwise" in name else ""
        result.append(line(f"evaluations to 0.1 nat per item, {name}", float(near[0]) if near else None, target, note))
    return result


def imputation(size: Size, large: bool) -> list[dict[str, Any]]:
    k, d, q = size.k, size.d, size.q
    n = 8192
    values, mask = items(n, k, d, q)
    fitted = PPCA(q).fit(values, mask, iterations=2)
    some = slice(0, 100)
    weights = [torch.from_numpy(w).float() for w in fitted.weights]
    means = [torch.from_numpy(mu).float() for mu in fitted.means]
    tensors, shown = [torch.from_numpy(v) for v in values], mask.tolist()

    def item_by_item() -> None:
        for i in range(some.stop):
            precision, b = torch.eye(q), torch.zeros(q)
            for j in range(k):
                if shown[i][j]:
                    precision += weights[j].T @ weights[j] / float(fitted.noise[j])
                    b += weights[j].T @ (tensors[j][i] - means[j]) / float(fitted.noise[j])
            latent = torch.linalg.solve(precision, b)
            for j in range(k):
                if not shown[i][j]:
                    weights[j] @ latent + means[j]

    def bare() -> None:
        # What cannot be avoided: copy everything out once, gather what is observed by pattern and scatter what is missing.
        out = [t.clone() for t in tensors]
        for pattern in patterns:
            for j in range(k):
                out[j][pattern.rows] = tensors[j][pattern.rows]

    patterns = observe(values, mask).patterns()
    seconds = timed({"ours": lambda: fitted.impute(values, mask), "items": item_by_item, "bare": bare}, size.repeats)
    return [
        line("rows imputed per second", n / statistics.median(seconds["ours"]), ""),
        line(
            "times faster than a solve per item",
            ratio(seconds, "items", "ours") * n / some.stop,
            ">= 25",
            f"100 items scaled to {n:,}",
        ),
        line("share of the rate of bare gather and scatter", ratio(seconds, "bare", "ours"), ">= 0.6"),
    ]


def peers(size: Size, large: bool) -> list[dict[str, Any]]:
    """Packages from PyPI that fit PPCA to missing entries, where they are installed, each at its defaults from three random starts.

    A package stops where its tolerance says, at some held-out error. It is compared with the fewest EM iterations that bring ours to
    that error or below.
    """
    k, d, q, n = (4, 256, 32, 5000) if size is FULL and large else (4, 64, 16, 2000)
    values, _ = items(n, k, d, q, np.float64)
    rng = np.random.default_rng(SEED)
    mask = rng.random((n, k)) < 0.6
    mask[np.arange(n), rng.integers(k, size=n)] = True
    hidden = np.repeat(~mask, d, axis=1)
    truth = np.concatenate(values, axis=1)
    gappy = np.where(hidden, np.nan, truth)
    variance = truth.var(axis=0).mean()

    def error(filled: np.ndarray) -> float:
        return float(np.square(filled - truth)[hidden].mean() / variance)

    def fit(iterations: int) -> list[np.ndarray]:
        return PPCA(q).fit(values, mask, iterations=iterations).impute(values, mask)

    sides = {str(count): functools.partial(fit, count) for count in (0, 1, 2, 5)}
    own = {name: statistics.median(times) for name, times in timed(sides, size.repeats).items()}
    errors = {name: error(np.concatenate(side(), axis=1)) for name, side in sides.items()}
    result = [
        line(f"seconds of ours, {name} EM iterations (D = {k * d})", own[name], "", f"error {errors[name]:.4f} of the variance")
        for name in sides
    ]
    target = ">= 10" if k * d >= 1024 else ">= 5"
    for name, peer in _installed_peers(gappy, q).items():
        for start in range(3):
            # The packages draw from the global generator and take no other.
            np.random.seed(start)  # noqa: NPY002
            begun = time.perf_counter()
            with warnings.catch_warnings(), silence():
                warnings.simplefilter("ignore")
                try:
                    filled = peer()
                except Exception as failure:  # foreign code may fail in any way, and the comparison goes on
                    result.append(line(f"{name}: failed", None, "", str(failure)[:60]))
                    break
            seconds, reached = time.perf_counter() - begun, error(filled)
            enough = next((count for count in sides if errors[count] <= reached), None)
            ratio_ = seconds / own[enough] if enough else None
            note = f"{seconds:.2f} s, error {reached:.4f}; ours gets there after {enough} iterations"
            result.append(line(f"{name}, start {start}: times slower at equal error (D = {k * d})", ratio_, target, note))
            if seconds > 15:
                break
    return result


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Standard output of compiled code too goes nowhere: the result of this program is JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _installed_peers(gappy: np.ndarray, q: int) -> dict[str, Callable[[], np.ndarray]]:
    found: dict[str, Callable[[], np.ndarray]] = {}
    if (module := _optional("pyppca")) is not None:
        found["pyppca"] = lambda: module.ppca(gappy.copy(), q, False)[4]
    if (package := _optional("ppca")) is not None:

        def fit_ppca() -> np.ndarray:
            fitted = package.PPCA()
            fitted.fit(gappy.copy(), d=q)
            return fitted.data * fitted.stds + fitted.means

        found["ppca"] = fit_ppca
    if (rust := _optional("ppca_rs")) is not None:

        def fit_rust() -> np.ndarray:
            dataset = rust.Dataset(gappy.copy())
            trained = rust.PPCATrainer(dataset).train(state_size=q, n_iters=5)
            return trained.extrapolate(dataset).numpy()

        found["ppca_rs, 5 iterations"] = fit_rust
    return found


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


CASES: dict[str, Callable[[Size, bool], list[dict[str, Any]]]] = {
    "iterates": iterates,
    "iteration": iteration,
    "flat": flat,
    "pass": first_pass,
    "evaluations": evaluations,
    "peers": peers,
    "imputation": imputation,
}


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    rows = [f"| {row['what']} | {_number(row['value'])} | {row['target']} | {row['note']} |" for row in lines]
    return "\n".join(["| what | value | target | note |", "|---|---:|---|---|", *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def show(lines: Sequence[dict[str, Any]], size: Size) -> None:
    table = Table(title=f"Imputation, k = {size.k}, d = {size.d}, q = {size.q}, one thread")
    for heading in ("what", "value", "target", "note"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in lines:
        table.add_row(row["what"], _number(row["value"]), row["target"], row["note"])
    console.out.print(table)


if __name__ == "__main__":
    _script.run(main)
