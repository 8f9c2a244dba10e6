"""The pipeline of stage 1: manifest to blocks, blocks to parts in worker processes, parts to a store; resumes where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab import console
from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.registry import nearest
from calmrl_lab.store import ModalitySpec, Reason, offsets_of, write_store
from feature_extractors.blocks import Part, attempt, encode_block, failure
from feature_extractors.datasets import datasets
from feature_extractors.encoders import encoders
from feature_extractors.protocols import Encoder, Image, Item, Manifest, MediaError, Medium, Vector, Waveform

BLOCK = 128
MAX_FAILURES = 0.05
_RECORDED = ("calmrl-lab", "torch", "numpy", "transformers", "av", "kaldi-native-fbank", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What to extract with what: everything a worker needs to encode any block, small and picklable."""

    choice: Mapping[str, str]  # modality -> encoder name
    device: str
    weights: Path | None
    media: Path | None

    def encoders(self) -> dict[str, Encoder]:
        """An encoder a modality; equal names share one."""
        made: dict[str, Encoder] = {}
        for name in self.choice.values():
            if name not in made:
                made[name] = encoders.get(name)(device=self.device, weights=self.weights)
        return {modality: made[name] for modality, name in self.choice.items()}


@dataclass(frozen=True)
class Summary:
    """What an extraction did."""

    store: Path
    items: int
    rows: dict[str, int]
    missing: dict[str, dict[str, int]]
    failed_media: int
    media: int
    seconds: float
    resumed_blocks: int
    busy: dict[str, float]

    def payload(self) -> dict[str, Any]:
        return {**self.__dict__, "store": str(self.store)}


def extract(
    dataset: str,
    out: Path,
    preset: str | None = None,
    media: Path | None = None,
    weights: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "local",
    block_size: int = BLOCK,
    max_failures: float = MAX_FAILURES,
    options: Mapping[str, Any] | None = None,
) -> Summary:
    """Run the frozen encoders of `preset` over `dataset` and write the feature store `out`.

    The manifest is cut into blocks; every block becomes one part file under `<out>.parts/`; when all are there they are joined into
    the store, and removed. A killed run resumes by skipping finished parts. The store is the same byte for byte whatever the number of workers
    or restarts (all but provenance.json). `preset` is a preset of the dataset or `modality=encoder,modality=encoder`.

    Raises CalmrlError for a request that makes no sense (nothing is written then), and WorkFailedError after everything is written if more than
    `max_failures` of the media failed: that is a wrong path, not bad luck.
    """
    started = time.monotonic()
    if out.exists():
        raise CalmrlError(f"'{out}' exists already", hint="choose another --out, or remove it to extract again")
    if engine not in _ENGINES:
        raise CalmrlError(f"unknown engine '{engine}'{nearest(engine, list(_ENGINES))}", hint=f"engines: {', '.join(_ENGINES)}")
    source = datasets.get(dataset)
    choice = _choice(dataset, source.presets, preset)
    request = Request(choice, _device(device), weights, media)
    count = _workers(workers, request.device)
    kinds = request.encoders()
    with _one_thread():
        manifest = source(media=media, **(options or {})).manifest()
    manifest = _restricted(manifest, tuple(choice))
    plan = _plan(manifest, choice, kinds, block_size)
    folder = out.with_name(out.name + ".parts")
    with _locked(folder, plan), _terminated_as_interrupted(folder):
        blocks = [manifest.items[start : start + block_size] for start in range(0, len(manifest.items), block_size)]
        paths = [folder / f"{number:06d}.part" for number in range(len(blocks))]
        todo = [number for number, path in enumerate(paths) if Part.read(path) is None]
        _run(engine, request, manifest.modalities, blocks, paths, todo, count, dataset)
        summary = _join(out, manifest, choice, kinds, paths, time.monotonic() - started, len(blocks) - len(todo))
    shutil.rmtree(folder)
    if summary.failed_media > max_failures * max(summary.media, 1):
        raise WorkFailedError(
            f"{summary.failed_media} of {summary.media} media failed, more than the limit of {max_failures:.0%}; the store '{out}' is "
            "written, with the gaps marked",
            hint=f"read {out / 'failures.jsonl'}; a wrong --media folder is the usual cause",
        )
    return summary


@contextmanager
def _one_thread() -> Iterator[None]:
    """Datasets may use an encoder to group their items; its last bits must not depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choice(dataset: str, presets: Mapping[str, Mapping[str, str]], preset: str | None) -> dict[str, str]:
    if preset is None:
        return dict(next(iter(presets.values())))
    if "=" not in preset:
        if preset in presets:
            return dict(presets[preset])
        raise CalmrlError(
            f"dataset '{dataset}' has no encoder preset '{preset}'{nearest(preset, list(presets))}",
            hint=f"presets: {', '.join(presets)}; or --encoders vision=NAME,caption=NAME (calmrl-lab list encoders)",
        )
    chosen = {modality.strip(): name.strip() for modality, _, name in (pair.partition("=") for pair in preset.split(","))}
    for name in chosen.values():
        encoders.get(name)
    return chosen


def _restricted(manifest: Manifest, chosen: tuple[str, ...]) -> Manifest:
    for name in chosen:
        if name not in manifest.modalities:
            raise CalmrlError(
                f"dataset '{manifest.dataset}' has no modality '{name}'{nearest(name, list(manifest.modalities))}",
                hint=f"it has: {', '.join(manifest.modalities)}",
            )
    if not manifest.items:
        raise CalmrlError(f"dataset '{manifest.dataset}' has no items")
    kept = tuple(m for m in manifest.modalities if m in chosen)
    ids = Counter(item.id for item in manifest.items)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise CalmrlError(f"dataset '{manifest.dataset}': id '{twice[0]}' stands for {ids[twice[0]]} items")
    return Manifest(manifest.dataset, manifest.licence, manifest.attribution, kept, manifest.items)


def _device(device: str) -> str:
    from calmrl_lab.devices import resolve

    return str(resolve(device))


def _workers(asked: int | None, device: str) -> int:
    if asked is not None and asked < 1:
        raise CalmrlError(f"--workers must be at least 1, got {asked}")
    if not device.startswith("cuda"):
        return asked or os.cpu_count() or 1
    # One process a GPU; the number of workers is then how many threads decode for it.
    return asked or min(16, os.cpu_count() or 1)


def _plan(manifest: Manifest, choice: Mapping[str, str], kinds: Mapping[str, Encoder], block_size: int) -> dict[str, str]:
    """What parts depend on; two runs may share parts only if this is equal."""
    digest = hashlib.sha256(repr((manifest.dataset, manifest.modalities)).encode())
    for item in manifest.items:
        digest.update(repr((item.id, item.split, item.group, sorted(item.labels.items()))).encode("utf-8", "surrogatepass"))
        for modality in manifest.modalities:
            for medium in item.media.get(modality, ()):
                digest.update(_content(medium))
    plan = {"dataset": manifest.dataset, "manifest": digest.hexdigest(), "block size": str(block_size)}
    return plan | {f"encoder of {m}": f"{choice[m]} {kinds[m].fingerprint}" for m in manifest.modalities}


def _content(medium: Medium) -> bytes:
    if isinstance(medium, Vector):
        return b"vector" + medium.values.tobytes()
    if isinstance(medium, Image):
        return b"image" + repr(medium.pixels.shape).encode() + medium.pixels.tobytes()
    if isinstance(medium, Waveform):
        return b"waveform" + str(medium.rate).encode() + medium.samples.tobytes()
    return repr(medium).encode("utf-8", "surrogatepass")


@contextmanager
def _locked(folder: Path, plan: Mapping[str, str]) -> Iterator[None]:
    """The folder of parts, held by this run alone; refused if its parts come from another plan."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held until the end of the run
    except OSError as error:
        raise CalmrlError(f"'{folder}' cannot be written: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CalmrlError(
                f"another extraction is writing '{folder}'", hint="wait for it, or choose another --out"
            ) from None
        record = folder / "plan.json"
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            changed = [key for key in {**before, **plan} if before.get(key) != plan.get(key)]
            if changed:
                raise CalmrlError(
                    f"'{folder}' holds parts of another extraction: {changed[0]} was '{before.get(changed[0])}', is '{plan.get(changed[0])}'",
                    hint="choose another --out, or remove that folder to start again",
                )
        else:
            temporary = record.with_suffix(".tmp")
            temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, record)
        yield


@contextmanager
def _terminated_as_interrupted(folder: Path) -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does: blocks under way are finished, and the same command goes on from there."""

    def stop(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    usable = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if usable else None
    try:
        yield
    except KeyboardInterrupt:
        console.note(f"stopped; finished blocks are in '{folder}', and the same command goes on from there")
        raise
    finally:
        if usable:
            signal.signal(signal.SIGTERM, before)


_worker_request: Request | None = None
_worker_encoders: dict[str, Encoder] = {}


def _start_worker(request: Request) -> None:
    """One thread a process: the order of additions, and so every bit, must not depend on how many work beside it."""
    import torch

    global _worker_request, _worker_encoders
    # Ctrl-C is for the parent, which lets running blocks finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    console.err.quiet = True
    _worker_request, _worker_encoders = request, request.encoders()


def _block_in_worker(items: Sequence[Item], modalities: Sequence[str], path: Path) -> int:
    assert _worker_request is not None
    encode_block(items, modalities, _worker_encoders, _worker_request.media).write(path)
    return len(items)


def _run(
    engine: str,
    request: Request,
    modalities: Sequence[str],
    blocks: Sequence[Sequence[Item]],
    paths: Sequence[Path],
    todo: Sequence[int],
    workers: int,
    label: str,
) -> None:
    total = sum(len(block) for block in blocks)
    with console.progress(f"extracting {label}", total) as ticker:
        ticker.advance(total - sum(len(blocks[number]) for number in todo))
        for count in _ENGINES[engine](request, modalities, blocks, paths, todo, workers):
            ticker.advance(count)


def _local(
    request: Request,
    modalities: Sequence[str],
    blocks: Sequence[Sequence[Item]],
    paths: Sequence[Path],
    todo: Sequence[int],
    workers: int,
) -> Iterator[int]:
    """Blocks in worker processes of this machine; on a GPU in this process, with threads that decode for it."""
    if request.device.startswith("cuda"):
        yield from _on_device(request, modalities, blocks, paths, todo, workers)
        return
    left = list(todo)
    while left:
        broken = False
        with _pool(request, min(workers, len(left))) as pool:
            pending = {pool.submit(_block_in_worker, blocks[number], modalities, paths[number]): number for number in left}
            try:
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        number = pending.pop(future)
                        try:
                            count = future.result()
                        except BrokenProcessPool:
                            broken = True
                            continue
                        left.remove(number)
                        yield count
            except BaseException:
                # Blocks under way are finished and kept; those that wait are not begun.
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if broken:
            # A worker died and took its neighbours' blocks along. The first block that dies alone has the culprit.
            number = left[0]
            _one_by_one(request, modalities, blocks[number], paths[number])
            left.remove(number)
            yield len(blocks[number])


def _pool(request: Request, workers: int) -> ProcessPoolExecutor:
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(request,))


def _one_by_one(request: Request, modalities: Sequence[str], items: Sequence[Item], path: Path) -> None:
    """A block that may kill its worker: whole first, and if that dies, its media tried alone to find which one it is."""
    try:
        with _pool(request, 1) as pool:
            pool.submit(_block_in_worker, items, modalities, path).result()
        return
    except BrokenProcessPool:
        pass
    deadly = _deadly(request, modalities, items)
    harmless = [
        Item(
            item.id,
            item.split,
            {
                m: [medium for place, medium in enumerate(item.media.get(m, ())) if (number, m, place) not in deadly]
                for m in modalities
            },
            item.group,
            item.labels,
        )
        for number, item in enumerate(items)
    ]
    with _pool(request, 1) as pool:
        pool.submit(_block_in_worker, harmless, modalities, path).result()
    part = Part.read(path)
    assert part is not None
    for number, modality, place in sorted(deadly):
        error = MediaError("worker_crash", "the worker process died on it")
        part.failures.append(failure(items[number].id, modality, items[number].media[modality][place], error))
        if part.counts[modality][number] == 0:
            part.reason[number, list(modalities).index(modality)] = Reason.FAILED
    part.write(path)


def _deadly(request: Request, modalities: Sequence[str], items: Sequence[Item]) -> set[tuple[int, str, int]]:
    """(item, modality, place among its media) of every medium that kills a worker when it is encoded alone."""
    probes = [
        (number, m, place, medium)
        for number, item in enumerate(items)
        for m in modalities
        for place, medium in enumerate(item.media.get(m, ()))
    ]
    deadly = set()
    while probes:
        with _pool(request, 1) as pool:
            while probes:
                number, modality, place, medium = probes.pop(0)
                try:
                    pool.submit(_try_medium, modality, medium).result()
                except BrokenProcessPool:
                    deadly.add((number, modality, place))
                    break
    return deadly


def _try_medium(modality: str, medium: Medium) -> None:
    assert _worker_request is not None
    encode_block([Item("probe", "train", {modality: [medium]})], [modality], _worker_encoders, _worker_request.media)


def _on_device(
    request: Request,
    modalities: Sequence[str],
    blocks: Sequence[Sequence[Item]],
    paths: Sequence[Path],
    todo: Sequence[int],
    workers: int,
) -> Iterator[int]:
    kinds = request.encoders()
    with ThreadPoolExecutor(workers) as threads:

        def run(prepare: Callable[[Medium], np.ndarray], media: Sequence[Medium]) -> list[Any]:
            return list(threads.map(lambda medium: attempt(prepare, medium), media))

        for number in todo:
            encode_block(blocks[number], modalities, kinds, request.media, run).write(paths[number])
            yield len(blocks[number])


def _ray(
    request: Request,
    modalities: Sequence[str],
    blocks: Sequence[Sequence[Item]],
    paths: Sequence[Path],
    todo: Sequence[int],
    workers: int,
) -> Iterator[int]:
    """Blocks as Ray tasks, on this machine or an existing cluster; `out` must be on a file system that all of them see."""
    from calmrl_lab.errors import missing_extra

    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None
    if not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    gpus = 1 if request.device.startswith("cuda") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_block_in_task)
    pending = {task.remote(request, blocks[number], modalities, paths[number].resolve()): number for number in todo}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        pending.pop(done)
        yield ray.get(done)


def _block_in_task(request: Request, items: Sequence[Item], modalities: Sequence[str], path: Path) -> int:
    if _worker_request != request:
        _start_worker(request)
    return _block_in_worker(items, modalities, path)


_ENGINES: dict[str, Callable[..., Iterator[int]]] = {"local": _local, "ray": _ray}


def _join(
    out: Path,
    manifest: Manifest,
    choice: Mapping[str, str],
    kinds: Mapping[str, Encoder],
    paths: Sequence[Path],
    seconds: float,
    resumed: int,
) -> Summary:
    parts = []
    for path in paths:
        part = Part.read(path)
        if part is None:
            raise WorkFailedError(
                f"part '{path}' is missing or damaged", hint="run the same command again; finished parts are kept"
            )
        parts.append(part)
    specs, features, offsets = [], {}, {}
    for m in manifest.modalities:
        counts = np.concatenate([part.counts[m] for part in parts])
        widths = {part.rows[m].shape[1] for part in parts if len(part.rows[m])}
        if len(widths) > 1:
            raise CalmrlError(f"modality '{m}' has features of {len(widths)} lengths: {', '.join(map(str, sorted(widths)))}")
        dimension = widths.pop() if widths else max(kinds[m].dimension, 1)
        features[m] = np.concatenate([part.rows[m].reshape(-1, dimension) for part in parts])
        offsets[m] = offsets_of(counts)
        specs.append(ModalitySpec(m, choice[m], kinds[m].fingerprint, dimension, getattr(kinds[m], "dtype", "float16")))
    labels = sorted({name for item in manifest.items for name in item.labels})
    reason = np.concatenate([part.reason for part in parts])
    failures = [record for part in parts for record in part.failures]
    busy: Counter[str] = Counter()
    for part in parts:
        busy.update(part.seconds)
    write_store(
        out,
        dataset=manifest.dataset,
        modalities=specs,
        ids=[item.id for item in manifest.items],
        split=[item.split for item in manifest.items],
        group=[item.group or item.id for item in manifest.items],
        labels={name: [item.labels.get(name, "") for item in manifest.items] for name in labels},
        features=features,
        offsets=offsets,
        reason=reason,
        licence=manifest.licence,
        attribution=manifest.attribution,
        heads={name: array for kind in dict.fromkeys(kinds.values()) for name, array in kind.heads().items()},
        failures=failures,
        provenance=_provenance(seconds, busy),
    )
    missing = {
        m: {r.words: int((reason[:, j] == r).sum()) for r in (Reason.ABSENT, Reason.FAILED)}
        for j, m in enumerate(manifest.modalities)
    }
    rows = {m: len(features[m]) for m in manifest.modalities}
    tried = sum(rows.values()) + len(failures)
    return Summary(out, len(manifest.items), rows, missing, len(failures), tried, seconds, resumed, dict(busy))


def _provenance(seconds: float, busy: Mapping[str, float]) -> dict[str, Any]:
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": sys.version.split()[0],
        "packages": versions,
        "seconds": round(seconds, 1),
        "busy_seconds": {key: round(value, 1) for key, value in busy.items()},
    }
