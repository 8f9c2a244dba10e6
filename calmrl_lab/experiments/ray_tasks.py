"""Runs of an experiment as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from calmrl_lab.experiments.job import ONE_THREAD, Job, Outcome, died, perform, single_thread
from calmrl_lab.runtime.ray_cluster import joined

# A run that waits besides those under way: a cluster that grows by demand sees that there is more to do.
_AHEAD = 1


def outcomes_on_ray(todo: Sequence[Job], workers: int, stop: threading.Event) -> Iterator[tuple[Job, Outcome]]:
    """What became of each run, in the order in which they end; once `stop` is set no further run is handed out.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine with `workers` cores. A run takes one core, and one GPU where the
    cluster has any and its configuration does not say `device: cpu`. Workers write into the run directories themselves: stores and runs must lie
    under the same paths on all machines. A worker that dies is tried again, and its run given up after three deaths.
    """
    with joined(workers) as ray:
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(num_cpus=1, max_retries=3, runtime_env={"env_vars": ONE_THREAD})(_perform_there)
        waiting = deque(todo)
        flying: dict[Any, Job] = {}
        while flying or (waiting and not stop.is_set()):
            # Asked every time: machines may have joined.
            room = int(ray.cluster_resources().get("CPU", 1)) + _AHEAD
            while waiting and len(flying) < room and not stop.is_set():
                job = waiting.popleft()
                options = {"num_gpus": int(gpus and job.config.device != "cpu")}
                flying[task.options(**options).remote(os.getcwd(), job)] = job
            # Ray interrupts what it cancels, so runs that were handed out are waited for when the experiment is stopped.
            (reference,), _ = ray.wait(list(flying), num_returns=1)
            job = flying.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayError as error:
                yield job, died(job, error)


def _perform_there(folder: str, job: Job) -> Outcome:
    """Runs in a Ray worker, which may have started elsewhere than where the paths of the run begin."""
    os.chdir(folder)
    single_thread()
    return perform(job)
