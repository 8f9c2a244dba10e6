"""Reading a feature store against zarr-python, h5py and plain reads of the same rows, interleaved in one run.

    calmrl-lab bench store            100,000 x 512 float16 (102 MB)
    calmrl-lab bench store --quick    the same with 20,000 rows, in seconds
    calmrl-lab bench store --large    also 1,000,000 items x 4 modalities x 512 (writes 4.1 GB to --folder and removes it)

Everything is read from a warm page cache. Ratios are medians over rounds in which all readers take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from rich.table import Table

from calmrl_lab.runtime import console
from calmrl_lab.store import FeatureStore, ModalitySpec, write_store

DIMENSION = 512
RANDOM_ROWS = 1024
# What the store is held to: times as fast as zarr-python (whole, random rows), share of a plain read, seconds, bytes.
TARGETS = {"whole vs zarr": 2.0, "rows vs zarr": 20.0, "whole vs readinto": 0.6}
LARGE_TARGETS = {"first batch seconds": 2.0, "memory GB": 1.0}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20,000 rows instead of 100,000")
    parser.add_argument("--large", action="store_true", help="also a million items of four modalities, streamed")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.first_batch:
        print(json.dumps(first_batch(options.first_batch)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="calmrl-bench-") as folder:
        result = small(Path(folder), 20_000 if options.quick else 100_000, options.repeats)
        if options.large:
            result["large"] = large(Path(folder), 1_000_000)
    console.emit(result, options.json, lambda: show(result))


def small(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Timings of all readers, seconds; the ratios that are promised."""
    values = unit_rows(np.random.default_rng(0), rows)
    store_path = synthetic_store(folder / "bench.zarr", rows, ["features"], lambda start, stop: values[start:stop])
    np.save(folder / "bench.npy", values)
    with h5py.File(folder / "bench.h5", "w") as file:
        file["features"] = values
    begun = time.perf_counter()
    store = FeatureStore.open(store_path)
    open_seconds = time.perf_counter() - begun
    array = zarr.open_array(store_path / "features" / "features", mode="r")
    mapped = np.load(folder / "bench.npy", mmap_mode="r")
    out = np.empty_like(values)
    index = np.sort(np.random.default_rng(1).choice(rows, RANDOM_ROWS, replace=False))

    def h5(selection: Any) -> np.ndarray:
        with h5py.File(folder / "bench.h5") as file:
            return file["features"][selection]

    def readinto(target: np.ndarray) -> np.ndarray:
        with open(folder / "bench.npy", "rb", buffering=0) as file:
            file.seek(mapped.offset)
            view = target.reshape(-1).view(np.uint8).data
            while view:
                view = view[file.readinto(view) :]
        return target

    whole = {
        "store": lambda: store.features("features"),
        "store, into an array": lambda: store.feature_range("features", 0, rows, out),
        "zarr-python": lambda: array[:],
        "h5py": lambda: h5(slice(None)),
        "readinto": lambda: readinto(np.empty_like(values)),
        "readinto, into an array": lambda: readinto(out),
    }
    some = {
        "store": lambda: store.rows("features", index),
        "zarr-python": lambda: array.oindex[index],
        "h5py": lambda: h5(index),
        "memory map": lambda: mapped[index],
    }
    for reader in whole.values():
        assert np.array_equal(reader(), values)
    for reader in some.values():
        assert np.array_equal(reader(), values[index])
    timings = {"whole": interleaved(whole, repeats), "random rows": interleaved(some, repeats)}
    ratios = {
        "whole vs zarr": times_faster(timings["whole"], "zarr-python"),
        "rows vs zarr": times_faster(timings["random rows"], "zarr-python"),
        "whole vs readinto": times_faster(timings["whole"], "readinto"),
    }
    seconds = {
        case: {name: {"min": min(times), "median": statistics.median(times)} for name, times in found.items()}
        for case, found in timings.items()
    }
    return {
        "rows": rows,
        "bytes": values.nbytes,
        "open seconds": open_seconds,
        "seconds": seconds,
        "ratios": ratios,
        "targets": TARGETS,
    }


def large(folder: Path, items: int) -> dict[str, Any]:
    """A store that is not meant for memory: how long until its first batch, and how much memory a new process needs for 400."""
    random = np.random.default_rng(0)
    begun = time.perf_counter()
    path = synthetic_store(
        folder / "large.zarr", items, [f"m{j}" for j in range(4)], lambda start, stop: unit_rows(random, stop - start)
    )
    written = time.perf_counter() - begun
    child = [sys.executable, __file__, "--first-batch", str(path)]
    found = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    return {"items": items, "write seconds": written, **found, "targets": LARGE_TARGETS}


def first_batch(path: Path) -> dict[str, float]:
    """In a process of its own: open the store, stream 2 x 200 batches of 1,024, and say when the first came and what it took."""
    begun = time.perf_counter()
    store = FeatureStore.open(path)
    opened = time.perf_counter() - begun
    first, rates = 0.0, []
    for seed in (0, 1):
        # The first pass checks each chunk file when it meets it; a second one only reads.
        batches = store.stream(batch_size=1024, seed=seed)
        next(batches)
        now = time.perf_counter()
        first = first or now - begun
        read = sum(len(batch.items) for batch in itertools.islice(batches, 200))
        rates.append(read / (time.perf_counter() - now))
    # Linux counts in kB, macOS in bytes.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "open seconds": opened,
        "first batch seconds": first,
        "items per second, checking": rates[0],
        "items per second": rates[1],
        "memory GB": memory / 1e9,
    }


def synthetic_store(path: Path, items: int, names: list[str], rows: Callable[[int, int], np.ndarray]) -> Path:
    step = 16384
    return write_store(
        path,
        dataset="synthetic",
        modalities=[ModalitySpec(name, "random", "none", DIMENSION) for name in names],
        ids=[f"{item:08}" for item in range(items)],
        split=["train"] * items,
        features={name: (rows(start, min(start + step, items)) for start in range(0, items, step)) for name in names},
        offsets={name: np.arange(items + 1) for name in names},
    )


def unit_rows(random: np.random.Generator, rows: int) -> np.ndarray:
    values = random.standard_normal((rows, DIMENSION), dtype=np.float32)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def interleaved(readers: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, list[float]]:
    """Each reader in turn, `repeats` rounds, so that a disturbance of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, reader in readers.items():
            begun = time.perf_counter()
            reader()
            times[name].append(time.perf_counter() - begun)
    return times


def times_faster(timings: dict[str, list[float]], other: str) -> float:
    """How many times as fast as `other` the store is: the median over rounds, in each of which both met the same machine."""
    return statistics.median(theirs / ours for theirs, ours in zip(timings[other], timings["store"], strict=True))


def show(result: dict[str, Any]) -> None:
    megabytes = result["bytes"] / 1e6
    for case, readers in result["seconds"].items():
        whole = case == "whole"
        title = (
            f"{case}: {result['rows']} x {DIMENSION} float16, {megabytes:.0f} MB" if whole else f"{RANDOM_ROWS} {case}, sorted"
        )
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in ("reader", "min ms", "median ms", "GB/s" if whole else "rows/ms"):
            table.add_column(column, justify="left" if column == "reader" else "right")
        for name, seconds in readers.items():
            rate = megabytes / 1000 / seconds["min"] if whole else RANDOM_ROWS / seconds["min"] / 1000
            table.add_row(name, f"{1000 * seconds['min']:.2f}", f"{1000 * seconds['median']:.2f}", f"{rate:.1f}")
        console.out.print(table)
        console.out.print()
    console.out.print(f"opening with all checksums: {1000 * result['open seconds']:.0f} ms")
    for name, target in result["targets"].items():
        verdict(name, result["ratios"][name], f">= {target:g}", result["ratios"][name] >= target)
    if "large" in result:
        found = result["large"]
        console.out.print(
            f"{found['items']} items x 4: written in {found['write seconds']:.0f} s, opened in {found['open seconds']:.2f} s, "
            f"{found['items per second']:.0f} items/s streamed ({found['items per second, checking']:.0f} while checking checksums)"
        )
        for name, target in found["targets"].items():
            verdict(name, found[name], f"< {target:g}", found[name] < target)


def verdict(name: str, found: float, target: str, met: bool) -> None:
    console.out.print(f"{name}: {found:.2f} (target {target}) " + ("[green]met[/green]" if met else "[red]missed[/red]"))


if __name__ == "__main__":
    main()
