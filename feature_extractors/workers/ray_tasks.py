"""Blocks as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime.ray_cluster import joined
from feature_extractors.encoder_setup import Equipment
from feature_extractors.shards.folder import PartsFolder
from feature_extractors.shards.shard import write_part
from feature_extractors.workers.encode_block import Block, media_of
from feature_extractors.workers.local_pool import LaneEncoder, WorkerConfig
from feature_extractors.workers.process import ONE_THREAD

# Tasks submitted ahead of those that run: enough to keep every worker busy, few enough to keep their items out of memory.
_AHEAD = 2


def run_on_ray(
    equipment: Equipment,
    crew: WorkerConfig,
    finished: PartsFolder,
    blocks: Sequence[Block],
    stop: threading.Event,
    fingerprints: dict[str, str],
) -> Iterator[int]:
    """As `run_local`, the blocks being encoded by Ray tasks; the parts are written here, so only media and weights must be shared.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine with as many cores as `crew` has lanes. On a GPU every
    task holds one, and as many cores as `crew` has readers or a machine has for each of its GPUs; this machine needs no GPU. A worker
    that dies is tried again, and its block given up after three deaths. Raises CalmrlError if there is no such cluster, or no GPU in it.
    """
    gpu = equipment.device.startswith("cuda")
    with joined(None if gpu else len(crew.devices)) as ray:
        if gpu:
            crew = replace(crew, readers=min(crew.readers, _cores_a_gpu(ray)))
        options = {"num_cpus": crew.readers if gpu else 1, "num_gpus": int(gpu), "max_retries": 3}
        task = ray.remote(**options, runtime_env={"env_vars": ONE_THREAD})(_encode)
        shared = ray.put((equipment.on("cuda") if gpu else equipment, crew, fingerprints))
        waiting = list(blocks)
        flying: dict[Any, Block] = {}
        limit = _AHEAD * max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
        while flying or (waiting and not stop.is_set()):
            while waiting and len(flying) < limit and not stop.is_set():
                block = waiting.pop(0)
                flying[task.remote(shared, block)] = block
            # Ray interrupts what it cancels, so blocks that were handed out are waited for when the run is stopped.
            (reference,), _ = ray.wait(list(flying), num_returns=1)
            block = flying.pop(reference)
            try:
                write_part(finished.part(block.number), ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, CalmrlError) else _failed(block, error) from None
            except ray.exceptions.RayError as error:
                raise _failed(block, error) from None
            yield sum(len(media_of(block.items, modality)) for modality in equipment.choice)


def _cores_a_gpu(ray: Any) -> int:
    """How many cores every GPU of the cluster can have: a task that asks for more would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    if not machines:
        raise CalmrlError("no machine of the Ray cluster has a GPU", hint="use --device cpu")
    return max(1, min(int(machine.get("CPU", 1) // machine["GPU"]) for machine in machines))


def _failed(block: Block, error: Exception) -> WorkFailedError:
    said = str(error).strip().split("\n")[-1]
    return WorkFailedError(
        f"block {block.number} (items {block.items[0].id!r} to {block.items[-1].id!r}) failed on Ray: {said}",
        hint="finished parts are kept, and the same command goes on from there; --engine local names the medium a worker dies of",
    )


_lane: tuple[Equipment, LaneEncoder] | None = None


def _encode(shared: tuple[Equipment, WorkerConfig, dict[str, str]], block: Block) -> bytes:
    """Runs in a Ray worker, which keeps its encoders for the next block."""
    global _lane
    equipment, crew, fingerprints = shared
    if _lane is None or _lane[0] != equipment:
        lane = LaneEncoder(equipment, crew, None)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)
        for modality, encoder in lane.encoders.items():
            if encoder.fingerprint != fingerprints[modality]:
                raise WorkFailedError(
                    f"encoder '{equipment.choice[modality]}' is another one on a machine of the cluster (fingerprint {encoder.fingerprint[:12]}, here "
                    f"{fingerprints[modality][:12]})",
                    hint="the same weights and the same version of calmrl-lab must be on all machines",
                )
        _lane = (equipment, lane)
    return _lane[1].encode(block)
