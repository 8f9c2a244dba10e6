"""Loss kernels and a training step against plain formulations and against their own matrix products, interleaved in one run.

    calmrl-lab bench objectives            B = 1024, d = 512, k = 4 (a few minutes, 5 GB of memory for the plain SVD)
    calmrl-lab bench objectives --quick    small batches, in seconds
    calmrl-lab bench objectives --device cuda

Forward and backward together. Ratios are medians over rounds in which everybody takes turns; `plain` are the formulas as written
(see _plain_objectives.py), checked to give the same numbers. The targets are those of a CPU. On a GPU every time includes starting the
kernels and waiting for the last one; `as a graph` is the same work started at once, which it can be because nothing in it asks the host.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import _plain_objectives as plain

from calmrl_lab.model.projection import Heads
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.pmrl import PMRL
from calmrl_lab.objectives.terms.volume import volumes
from calmrl_lab.objectives.triangle import squared_parallelograms
from calmrl_lab.runtime import console
from calmrl_lab.runtime.devices import resolve, send
from calmrl_lab.training.optimiser import make_optimiser, update

NAMES = ("vision", "audio", "caption", "subtitle")
DIMENSION = 512
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Seconds that the rounds of one case may take on a GPU, where a plain contender can be slower than everything else together.
LIMIT = 12.0
AS_A_GRAPH = "ours as a graph"
# At least so many times faster than plain; at most so many times the matrix products that cannot be avoided.
TARGETS = {
    "spectral loss, full SVD / ours": 30.0,
    "spectral loss, thin SVD / ours": 1.5,
    "spectral loss, ours / its products": 1.7,
    "spectral loss, memory of full SVD / ours": 50.0,
    "volume, determinants / ours": 4.0,
    "volume at twice the batch, determinants / ours": 8.0,
    "volume at twice the batch, ours / its products": 1.5,
    "area, differences / ours": 100.0,
    "training step, ours / its products": 1.5,
    "training step, loader and full SVD / ours": 12.0,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="batches of 128, three rounds")
    parser.add_argument("--repeats", type=int, default=None, help="rounds (default 7, quick 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads, the same for every contender (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 or auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("WHO", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.memory:
        print(peak_memory(options.memory[0], int(options.memory[1])))
        return
    device = resolve(options.device)
    batch, repeats = (
        (128, options.repeats or 3) if options.quick else (1024, options.repeats or (7 if device.type == "cpu" else 15))
    )
    result = measure(batch, repeats, device)
    console.emit(result, options.json, lambda: show(result))


def measure(batch: int, repeats: int, device: torch.device) -> dict[str, Any]:
    rounds = {
        "spectral loss": interleaved(spectral(batch, device), repeats, device),
        "volume": interleaved(volume(batch, device), repeats, device),
        "volume at twice the batch": interleaved(volume(2 * batch, device), max(3, repeats // 2), device),
        "area": interleaved(area(min(batch, 256), device), repeats, device),
        "training step": interleaved(training_step(batch, device), max(3, repeats // 2), device),
    }
    ratios = {name: ratio(rounds, name) for name in TARGETS if "memory" not in name}
    if device.type == "cuda":
        memory = {who: peak_memory_on(device, who, batch) for who in ("ours", "full SVD")}
    else:
        memory = {who: in_a_process(who, batch) for who in ("ours", "full SVD")} if RESET_PEAK.exists() else {}
    if memory:
        ratios["spectral loss, memory of full SVD / ours"] = memory["full SVD"] / memory["ours"]
    if AS_A_GRAPH in rounds["spectral loss"]:
        ratios["spectral loss, ours as a graph / its products"] = ratio(rounds, f"spectral loss, {AS_A_GRAPH} / its products")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "batch": batch,
        "dimension": DIMENSION,
        "modalities": len(NAMES),
        "threads": torch.get_num_threads(),
        "milliseconds": {case: {who: 1e3 * statistics.median(t) for who, t in found.items()} for case, found in rounds.items()},
        "peak MB": memory,
        "ratios": ratios,
        "targets": TARGETS if device.type == "cpu" else {},
        "objectives, milliseconds at batch 256, dimension 256, 30 % missing": each_objective(repeats, device),
    }


def sets(batch: int, device: torch.device, dimension: int = DIMENSION, seed: int = 0) -> torch.Tensor:
    """Modality sets [B, k, d] that lean to one side, as trained embeddings do."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(batch, 1, dimension, generator=generator)
    noise = torch.randn(batch, len(NAMES), dimension, generator=generator)
    return torch.nn.functional.normalize(own + noise, dim=-1).to(device)


def backward(loss: Callable[[torch.Tensor], torch.Tensor], embeddings: torch.Tensor) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        leaf = embeddings.detach().requires_grad_()
        loss(leaf).backward()
        assert leaf.grad is not None
        return leaf.grad

    return run


def spectral_objective(dimension: int = DIMENSION) -> PMRL:
    return PMRL(NAMES, dimension, plain.TAU_ALIGNMENT, plain.TAU_UNIFORMITY, alpha=0.0)


def spectral(batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    embeddings = sets(batch, device)
    mask = torch.ones(batch, len(NAMES), dtype=torch.bool, device=device)
    objective = spectral_objective()
    vectors = embeddings[:, 0].contiguous()

    def products() -> None:
        (vectors @ vectors.mT) @ vectors

    contenders: dict[str, Callable[[], Any]] = {
        "ours": backward(lambda z: objective(z, mask)["loss"], embeddings),
        "its products": products,
        "thin SVD": backward(lambda z: plain.spectral_loss(z, full=False), embeddings),
        "full SVD": backward(lambda z: plain.spectral_loss(z, full=True), embeddings),
    }
    torch.testing.assert_close(contenders["ours"](), contenders["thin SVD"](), rtol=1e-3, atol=1e-5)
    if device.type == "cuda":
        try:
            contenders[AS_A_GRAPH] = graph_of(contenders["ours"])
        except RuntimeError as error:
            console.note(f"the spectral loss could not be recorded as a graph: {str(error).splitlines()[0]}")
    return contenders


def graph_of(work: Callable[[], Any]) -> Callable[[], None]:
    """`work` recorded once, its kernels started by one call; possible only if it never waits for the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def volume(batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    embeddings = sets(batch, device)
    shown = torch.ones(batch, len(NAMES) - 1, dtype=torch.bool, device=device)

    def ours(z: torch.Tensor) -> torch.Tensor:
        return volumes(z[:, 0], z[:, 1:], shown, 1e-8, paired=True).mean()

    vectors, slope = embeddings[:, 0].contiguous(), torch.rand(batch, batch, device=device)

    def products() -> None:
        for _ in range(len(NAMES) - 1):
            vectors @ vectors.mT
            slope @ vectors
            slope.mT @ vectors

    contenders: dict[str, Callable[[], Any]] = {
        "ours": backward(ours, embeddings),
        "its products": products,
        "determinants": backward(lambda z: plain.volumes(z[:, 0], z[:, 1:]).mean(), embeddings),
    }
    torch.testing.assert_close(contenders["ours"](), contenders["determinants"](), rtol=1e-2, atol=1e-5)
    return contenders


def area(batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    embeddings = sets(batch, device)
    contenders = {
        "ours": backward(lambda z: squared_parallelograms(z[:, 0], z[:, 1:3]).mean(), embeddings),
        "differences": backward(lambda z: plain.squared_parallelograms(z[:, 0], z[:, 1:3]).mean(), embeddings),
    }
    torch.testing.assert_close(contenders["ours"](), contenders["differences"](), rtol=1e-3, atol=1e-6)
    return contenders


def training_step(batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Gather, linear heads, spectral loss, clipped AdamW; its products are those of the heads and of uniformity."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(8 * batch, DIMENSION, generator=generator) for _ in NAMES]
    on_device = [rows.to(device) for rows in features]
    mask = torch.ones(batch, len(NAMES), dtype=torch.bool, device=device)
    objective = spectral_objective()

    def stepper(loss: Callable[[torch.Tensor], torch.Tensor], fetch: Callable[[], list[torch.Tensor]]) -> Callable[[], None]:
        heads = Heads(dict.fromkeys(NAMES, DIMENSION), DIMENSION, "linear", seed=0).to(device)
        parameters = list(heads.parameters())
        optimiser = make_optimiser(parameters, 1e-3, 0.01)

        def step() -> None:
            update(loss(heads(fetch(), mask)), optimiser, parameters, 2.0)

        return step

    def gather() -> list[torch.Tensor]:
        chosen = send(torch.randint(8 * batch, (batch,), generator=generator), device)
        return [rows[chosen] for rows in on_device]

    endless = iter(lambda: None, 0)

    def from_loader() -> list[torch.Tensor]:
        nonlocal endless
        found = next(endless, None)
        if found is None:
            endless = iter(plain.loader(features, batch))
            found = next(endless)
        return [rows.to(device) for rows in found]

    weights = torch.randn(DIMENSION, DIMENSION, generator=generator).to(device)
    inputs = [rows[:batch].contiguous() for rows in on_device]

    def products() -> None:
        for rows in inputs:
            out = rows @ weights.mT
            out.mT @ rows
        (inputs[0] @ inputs[0].mT) @ inputs[0]

    return {
        "ours": stepper(lambda z: objective(z, mask)["loss"], gather),
        "its products": products,
        "loader and full SVD": stepper(lambda z: plain.spectral_loss(z, full=True), from_loader),
    }


def each_objective(repeats: int, device: torch.device) -> dict[str, float]:
    embeddings = sets(256, device, 256)
    mask = torch.rand(256, len(NAMES), generator=torch.Generator().manual_seed(0)) < 0.7
    mask[:, 0] = True
    mask, imputed = mask.to(device), sets(256, device, 256, seed=1)
    found = {}
    for name in objectives:
        objective = objectives.get(name)(NAMES, 256).to(device)
        run = backward(lambda z, objective=objective: objective(z, mask, imputed)["loss"], embeddings)
        found[name] = 1e3 * statistics.median(interleaved({name: run}, repeats, device)[name])
    return found


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every contender in each of `repeats` rounds, after one that warms up; on a GPU, rounds end early at the limit."""

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for turn in range(repeats + 1):
        if turn > 1 and device.type == "cuda" and time.perf_counter() - start > LIMIT:
            break
        for name, contender in contenders.items():
            settle()
            begun = time.perf_counter()
            contender()
            settle()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return times


def ratio(rounds: dict[str, dict[str, list[float]]], name: str) -> float:
    """ "case, one / other": time of one over that of the other, the median over rounds."""
    case, _, sides = name.partition(", ")
    one, other = sides.split(" / ")
    return statistics.median(a / b for a, b in zip(rounds[case][one], rounds[case][other], strict=True))


def in_a_process(who: str, batch: int) -> float:
    command = [sys.executable, __file__, "--memory", who, str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


SPECTRAL_STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ours": lambda z: spectral_objective()(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))["loss"],
    "full SVD": lambda z: plain.spectral_loss(z, full=True),
}


def peak_memory_on(device: torch.device, who: str, batch: int) -> float:
    """MB that one step takes on a GPU at its peak, beside its embeddings."""
    embeddings = sets(batch, device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    backward(SPECTRAL_STEPS[who], embeddings)()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def peak_memory(who: str, batch: int) -> float:
    """MB by which the resident memory of this process, which does nothing else, grows at its peak during one step."""
    cpu = torch.device("cpu")
    spectral_step = SPECTRAL_STEPS[who]
    backward(spectral_step, sets(8, cpu))()
    embeddings = sets(batch, cpu)
    before = resident("VmRSS")
    RESET_PEAK.write_text("5")
    backward(spectral_step, embeddings)()
    return resident("VmHWM") - before


def resident(what: str) -> float:
    """Resident memory now (VmRSS) or at its peak (VmHWM) in MB, from Linux's own count."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1e3


def show(result: dict[str, Any]) -> None:
    title = f"batch {result['batch']}, dimension {result['dimension']}, {result['modalities']} modalities, {result['threads']} thread(s)"
    console.out.print(f"{result['device']}, torch {result['torch']}")
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("case", "contender", "median ms"):
        table.add_column(heading, justify="right" if heading == "median ms" else "left")
    for case, found in result["milliseconds"].items():
        for who, milliseconds in found.items():
            table.add_row(case, who, f"{milliseconds:.2f}")
    console.out.print(table)
    for name, value in result["ratios"].items():
        bound = "at most" if "products" in name else "at least"
        target = f" (target: {bound} {result['targets'][name]:g})" if name in result["targets"] else ""
        console.out.print(f"{name}: {value:.2f}{target}", soft_wrap=True)
    peaks = ", ".join(f"{who} {megabytes:.0f} MB" for who, megabytes in result["peak MB"].items())
    console.out.print(f"peak memory of the spectral loss: {peaks or 'not measured (needs Linux)'}")
    (title,) = (key for key in result if key.startswith("objectives,"))
    console.out.print(f"{title}: " + ", ".join(f"{name} {ms:.1f}" for name, ms in result[title].items()), soft_wrap=True)


if __name__ == "__main__":
    main()
