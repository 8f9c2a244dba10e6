"""The pipeline of extraction: a manifest is divided into blocks, blocks become parts, and parts a store; it resumes where it stopped."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.registry import known
from calmrl_lab.runtime import console
from calmrl_lab.runtime.atomic_folders import may_take, recover
from calmrl_lab.runtime.progress import progress
from calmrl_lab.runtime.ray_cluster import check_cluster
from calmrl_lab.runtime.signals import stopping_gently
from calmrl_lab.store import FeatureStore, Reason, offsets_of, write_store
from calmrl_lab.store.disk.files import looks_like_store
from feature_extractors import request_checks as planning
from feature_extractors import retry_failed as retrying
from feature_extractors.encoder_setup import EncoderFacts, Equipment, facts
from feature_extractors.forecast import Forecast, Spent
from feature_extractors.protocols import Manifest
from feature_extractors.request import PRESET, resolve_request
from feature_extractors.shards.folder import PART_FORMAT, PartsFolder, Plan, locked_parts, parts_folder
from feature_extractors.shards.join import Joined, count_codes, join, survives_float16, tally
from feature_extractors.workers.encode_block import Block, media_of
from feature_extractors.workers.local_pool import WorkerConfig, run_local
from feature_extractors.workers.ray_tasks import run_on_ray

BLOCK = 64
MAX_FAILURES = 0.05
# Reading a medium: decoding an hour of 720p video takes about two minutes of a core.
TIMEOUT = 300.0
ENGINES = ("local", "ray")
# How often damaged parts are made again before the disk is given up.
_ROUNDS = 3
# Beyond this many more readers do not keep one GPU busier.
_READERS = 16
_RECORDED = ("calmrl-lab", "torch", "numpy", "transformers", "av", "kaldi-native-fbank", "onnxruntime")


@dataclass(frozen=True)
class Summary:
    """What an extraction did. `missing`: modality -> reason -> items; `failed`: why media failed, and how many of each.

    `left_out`: items that have none of the modalities and are not in the store. `busy`: seconds of all workers together, by what they
    did. `waited`: the share of their time in which encoders waited for media (None where nothing had to be read).
    """

    store: Path
    items: int
    modalities: list[str]
    rows: dict[str, int]
    missing: dict[str, dict[str, int]]
    media: int
    failed_media: int
    failed: dict[str, int]
    left_out: list[str]
    seconds: float
    items_per_second: float
    resumed_blocks: int
    busy: dict[str, float] = field(default_factory=dict)
    waited: float | None = None

    def payload(self) -> dict[str, Any]:
        return {**self.__dict__, "store": str(self.store)}


@dataclass(frozen=True)
class _Job:
    """A checked request: everything that is known before the first block."""

    out: Path
    manifest: Manifest
    equipment: Equipment
    facts: dict[str, EncoderFacts]
    plan: Plan
    crew: WorkerConfig
    engine: str
    block_size: int
    preset: str | None

    @property
    def manifest_digest(self) -> str:
        return hashlib.sha256("".join(digest for _, digest in self.plan.items).encode()).hexdigest()

    def blocks(self) -> list[Block]:
        items = self.manifest.items
        return [
            Block(n, items[start : start + self.block_size]) for n, start in enumerate(range(0, len(items), self.block_size))
        ]


def extract(
    dataset: str,
    out: str | Path,
    preset: str | None = None,
    media: str | Path | None = None,
    weights: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "local",
    block_size: int = BLOCK,
    max_failures: float = MAX_FAILURES,
    options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Mapping[str, Any]] | None = None,
    timeout: float = TIMEOUT,
    overwrite: bool = False,
    retry_failed: bool = False,
    precision: str | None = None,
) -> Summary:
    """Run the frozen encoders of `preset` over `dataset` and write the feature store `out`.

    The manifest is cut into blocks; every block becomes one part file under `<out>.parts/`; when all are there they are joined into the
    store, and removed. A killed run resumes by skipping finished parts. The store is the same byte for byte whatever the number of
    workers, restarts or machines (all but provenance.json).

    preset: a preset of the dataset (default: its first), or `modality=encoder,modality=encoder`. media, weights: folders for the
    dataset and the encoders; files outside `media` are refused. workers: worker processes, default one per core (on a GPU: processes that
    read media for it). engine: `local`, or `ray` for tasks on a cluster. options: of the dataset. encoder_options: modality -> options of its encoder (`{"vision": {"precision": "bf16"}}`). timeout: seconds that reading one medium
    may take. overwrite: replace an existing store, when the new one is complete. retry_failed: the store exists; only what failed in it
    is tried again. precision: `fp32` or `bf16`, for all encoders that have this option (`encoder_options` win).

    Media that cannot be used leave gaps with a reason, and records in failures.jsonl. Raises CalmrlError for a request that makes no sense (nothing is
    written then), and WorkFailedError after everything is written if more than `max_failures` of the media failed: that is a wrong
    path, not bad luck.
    """
    started = time.monotonic()
    out = Path(out)
    media, weights = (Path(folder) if folder is not None else None for folder in (media, weights))
    _check_numbers(workers, block_size, timeout, engine)
    old = _existing(out, overwrite, retry_failed)
    devices = _devices(device, engine)
    request = resolve_request(dataset, preset, media, weights, devices[0], options, encoder_options, precision, old)
    manifest, equipment = request.manifest, request.equipment
    known = facts(equipment)
    pairs: set[tuple[str, str]] = set()
    settings = {"part format": PART_FORMAT, "dataset": manifest.dataset, "block size": str(block_size)}
    if retry_failed:
        assert old is not None
        pairs = _retried(old, manifest, known)
        if parts_folder(out).exists():
            with locked_parts(out) as finished:
                retrying.clean_up(finished, old)
        if not pairs:
            console.note(f"nothing failed in '{out}'")
            return _summary(old, [], time.monotonic() - started, 0, {})
        manifest = retrying.only_failed(manifest, pairs, old)
        settings[retrying.COMPLETES] = old.digest
    settings |= {f"encoder of {m}": f"{equipment.choice[m]} {known[m].fingerprint}" for m in manifest.modalities}
    plan = Plan(settings, [(item.id, planning.item_digest(item, manifest.modalities, media)) for item in manifest.items])
    job = _Job(
        out, manifest, equipment, known, plan, _worker_config(workers, devices, timeout), engine, block_size, request.preset
    )
    planning.smoke_check(manifest, known)
    with locked_parts(out) as finished:
        if os.path.lexists(out) and not overwrite and not retry_failed:
            return _finished_before(job, finished, started)
        finished.claim(plan)
        joined, resumed = _encode(job, finished)
        if retry_failed:
            assert old is not None
            left_out = _complete(job, old, joined, pairs, started)
        else:
            left_out = _write(job, joined, started, overwrite)
        done = _summary(FeatureStore.open(out), left_out, time.monotonic() - started, resumed, joined.seconds)
        finished.remove()
    if done.failed_media > max_failures * done.media:
        raise WorkFailedError(
            f"{done.failed_media} of {done.media} media failed, more than the limit of {max_failures:.0%} ({_listed(done.failed)}); the store "
            f"'{out}' is written, with the gaps marked",
            hint=f"read {out / 'failures.jsonl'}; a wrong --media folder is the usual cause. After repairs, --retry-failed fills the gaps",
        )
    return done


def _check_numbers(workers: int | None, block_size: int, timeout: float, engine: str) -> None:
    if workers is not None and workers < 1:
        raise CalmrlError(f"--workers must be at least 1, got {workers}")
    if block_size < 1:
        raise CalmrlError(f"the block size must be at least 1, got {block_size}")
    if not timeout > 0:
        raise CalmrlError(f"--timeout must be more than 0 seconds, got {timeout:g}")
    known(engine, ENGINES, "unknown engine")
    if engine == "ray":
        check_cluster()


def _existing(out: Path, overwrite: bool, retry_failed: bool) -> FeatureStore | None:
    """The store to complete, if that was asked for; CalmrlError if `out` is in the way, or could not be replaced in the end."""
    if overwrite and retry_failed:
        raise CalmrlError("--overwrite and --retry-failed exclude each other")
    if not out.name:
        raise CalmrlError(f"'{out}' is not the name of a store", hint="--out stores/NAME.zarr")
    recover(out)
    if overwrite or retry_failed:
        may_take(out, overwrite=True, replaceable=looks_like_store)
    if retry_failed:
        return FeatureStore.open(out)
    # A run that was killed after the store was complete has left its parts: then it is for the plan to decide.
    if os.path.lexists(out) and not overwrite and not parts_folder(out).exists():
        raise _in_the_way(out)
    return None


def _in_the_way(out: Path) -> CalmrlError:
    return CalmrlError(
        f"'{out}' exists already", hint="choose another --out, or pass --overwrite, or --retry-failed to complete it"
    )


def _devices(device: str, engine: str) -> list[str]:
    """The devices that get a lane each; one entry `cpu` stands for as many lanes as there are workers."""
    if engine == "ray" and device == "cuda":
        return [device]  # of the cluster, whatever this machine has
    import torch

    from calmrl_lab.runtime.devices import resolve

    resolved = resolve(device)
    if resolved.type == "cuda" and resolved.index is None and engine == "local":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(resolved)]


def _worker_config(workers: int | None, devices: Sequence[str], timeout: float) -> WorkerConfig:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if devices[0].startswith("cuda"):
        readers = workers or min(_READERS * len(devices), cores)
        return WorkerConfig(tuple(devices), max(1, readers // len(devices)), timeout, ahead=True)
    return WorkerConfig(tuple(devices) * (workers or cores), 1, timeout, ahead=False)


def _encode(job: _Job, finished: PartsFolder) -> tuple[Joined, int]:
    """All parts, joined; and how many of them were there already."""
    blocks = job.blocks()
    todo = [block for block in blocks if not finished.part(block.number).exists()]
    resumed = len(blocks) - len(todo)
    paths = [finished.part(block.number) for block in blocks]
    for _ in range(_ROUNDS):
        with stopping_gently("the blocks under way") as stop:
            _run(job, finished, todo, resumed, stop)
        joined = join(paths, job.manifest.modalities)
        if not joined.damaged:
            return joined, resumed
        # A disk may lose what was flushed to it: such parts are made again.
        todo = [blocks[number] for number in joined.damaged]
        for block in todo:
            finished.part(block.number).unlink(missing_ok=True)
        resumed = max(0, resumed - len(todo))
    raise WorkFailedError(
        f"'{paths[joined.damaged[0]]}' was damaged each of the {_ROUNDS} times it was written",
        hint="the disk does not keep what is written to it; choose --out on another one",
    )


def _run(job: _Job, finished: PartsFolder, todo: Sequence[Block], resumed: int, stop: threading.Event) -> None:
    if not todo:
        return
    media = {m: sum(len(media_of(block.items, m)) for block in todo) for m in job.manifest.modalities}
    total = sum(media.values())
    label = f"extracting {job.manifest.dataset}" + (f" (after {resumed} finished blocks)" if resumed else "")
    forecast = Forecast(media, min(len(job.crew.devices), len(todo)))
    started = time.monotonic()
    with progress(label, total, "media") as task:
        done = 0
        for event in _engine(job, finished, todo, stop):
            if isinstance(event, Spent):
                forecast.add(event)
                task.left = None if forecast.unmeasured() else forecast.seconds_left()
                if news := forecast.news(time.monotonic() - started):
                    console.note(f"{label}: {news}")
                continue
            # A block that is repeated after a crash counts once.
            count = min(event, total - done)
            if count:
                done += count
                task.advance(count)


def _engine(job: _Job, finished: PartsFolder, todo: Sequence[Block], stop: threading.Event) -> Iterator[int | Spent]:
    if job.engine == "ray":
        fingerprints = {modality: fact.fingerprint for modality, fact in job.facts.items()}
        return run_on_ray(job.equipment, job.crew, finished, todo, stop, fingerprints)
    lanes = job.crew.devices[: len(todo)]
    crew = WorkerConfig(lanes, job.crew.readers, job.crew.timeout, job.crew.ahead)
    return run_local(job.equipment, crew, finished, todo, stop)


def _write(job: _Job, joined: Joined, started: float, overwrite: bool) -> list[str]:
    """The store from its parts; returns the ids of the items that are left out because they turned out to have nothing."""
    kept, left_out = _with_something(joined.reason, [item.id for item in job.manifest.items])
    write_store(
        job.out,
        modalities=[joined.spec(m, job.facts[m]) for m in job.manifest.modalities],
        features={m: joined.rows(m) for m in job.manifest.modalities},
        offsets={m: offsets_of(joined.counts[m][kept]) for m in job.manifest.modalities},
        reason=joined.reason[kept],
        heads=planning.heads_of(job.facts),
        failures=joined.failures,
        provenance=_provenance(job, joined, started),
        attributes={"manifest": job.manifest_digest} | ({PRESET: job.preset} if job.preset else {}),
        overwrite=overwrite,
        **planning.frame_of(job.manifest, kept),
    )
    return left_out


def _complete(job: _Job, old: FeatureStore, joined: Joined, pairs: set[tuple[str, str]], started: float) -> list[str]:
    """The old store with what could be had this time; items that now turn out to have nothing are left out."""
    patched = retrying.Patched(old, job.manifest, joined, pairs)
    kept, left_out = _with_something(patched.reason, old.ids.tolist())
    specs = [
        joined.spec(spec.name, EncoderFacts(spec.encoder, spec.fingerprint, spec.dimension, spec.dtype, {}))
        if spec.dtype != "float16" or all(survives_float16(rows) for rows in joined.rows(spec.name))
        else joined.spec(spec.name, EncoderFacts(spec.encoder, spec.fingerprint, spec.dimension, "float32", {}))
        for spec in old.specs
    ]
    write_store(
        job.out,
        modalities=specs,
        features={m: patched.rows(m) for m in old.modalities},
        offsets={m: offsets_of(patched.counts[m][kept]) for m in old.modalities},
        reason=patched.reason[kept],
        failures=joined.failures,
        provenance={**_provenance(job, joined, started), **retrying.completed(old)},
        attributes={name: value for name, value in old.attributes.items() if name in ("manifest", PRESET)},
        overwrite=True,
        **patched.arguments(kept),
    )
    return left_out


def _with_something(reason: np.ndarray, ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    nothing = (reason == Reason.ABSENT).all(axis=1)
    left_out = [ids[int(i)] for i in np.flatnonzero(nothing)]
    if len(left_out) == len(ids):
        raise WorkFailedError("no item has any of the chosen modalities, so there is nothing to store")
    return np.flatnonzero(~nothing), left_out


def _retried(old: FeatureStore, manifest: Manifest, known: Mapping[str, EncoderFacts]) -> set[tuple[str, str]]:
    missing = [m for m in old.modalities if m not in manifest.modalities]
    if missing or len(manifest.modalities) != len(old.modalities):
        raise CalmrlError(
            f"'{old.path}' has the modalities {', '.join(old.modalities)}; the request is for {', '.join(manifest.modalities)}",
            hint="--retry-failed takes the same --encoders as before, or none",
        )
    retrying.check_encoders(old, known)
    return retrying.failed_pairs(old)


def _finished_before(job: _Job, finished: PartsFolder, started: float) -> Summary:
    """A run that was killed between writing the store and removing its parts: the rest of that."""
    before = finished.plan()
    if before is not None and job.plan.difference(before) is None:
        store = FeatureStore.open(job.out)
        if store.attributes.get("manifest") == job.manifest_digest:
            finished.remove()
            known = set(store.ids.tolist())
            left_out = [item.id for item in job.manifest.items if item.id not in known]
            return _summary(store, left_out, time.monotonic() - started, len(job.blocks()), {})
    raise _in_the_way(job.out)


def _summary(
    store: FeatureStore,
    left_out: list[str],
    seconds: float,
    resumed: int,
    busy: Mapping[str, float],
) -> Summary:
    failures = store.failures()
    rows = {m: int(store.offsets(m)[-1]) for m in store.modalities}
    waited, encoded = (sum(s for what, s in busy.items() if what.startswith(kind)) for kind in ("wait", "encode"))
    return Summary(
        store=store.path,
        items=len(store),
        modalities=list(store.modalities),
        rows=rows,
        missing=tally(store.reason, store.modalities),
        media=sum(rows.values()) + len(failures),
        failed_media=len(failures),
        failed=count_codes(failures),
        left_out=left_out,
        seconds=seconds,
        items_per_second=len(store) / max(seconds, 1e-9),
        resumed_blocks=resumed,
        busy={what: round(spent, 2) for what, spent in busy.items() if not what.startswith("wait")},
        waited=round(waited / (waited + encoded), 3) if any(s for w, s in busy.items() if w.startswith("prepare")) else None,
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in counts.items())


def _provenance(job: _Job, joined: Joined, started: float) -> dict[str, Any]:
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": platform.platform(),
        "devices": list(job.crew.devices),
        "engine": job.engine,
        "python": sys.version.split()[0],
        "packages": versions,
        "seconds": round(time.monotonic() - started, 1),
        "busy_seconds": {what: round(spent, 1) for what, spent in joined.seconds.items()},
    }
