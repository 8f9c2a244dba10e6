"""Runs of an experiment as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from calmrl_lab.errors import missing_extra
from calmrl_lab.jobs import ONE_THREAD, Job, Outcome, died, perform, single_thread


def require_ray() -> Any:
    """The module; an error naming the extra if it is not installed."""
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None
    return ray


def outcomes_on_ray(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, Outcome]]:
    """What became of each run, in the order in which they end.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine with `workers` cores. A run takes one core, and one GPU where the
    cluster has any and its configuration does not say `device: cpu`. Workers write into the run directories themselves: stores and runs must lie
    under the same paths on all machines. A worker that dies is tried again, and its run given up after three deaths.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif own:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    task = ray.remote(num_cpus=1, max_retries=3, runtime_env={"env_vars": ONE_THREAD})(_perform_there)
    try:
        flying = {task.options(num_gpus=int(gpus and job.config.device != "cpu")).remote(os.getcwd(), job): job for job in todo}
        while flying:
            (reference,), _ = ray.wait(list(flying), num_returns=1)
            job = flying.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayError as error:
                yield job, died(job, error)
    finally:
        if own:
            ray.shutdown()


def _perform_there(folder: str, job: Job) -> Outcome:
    """Runs in a Ray worker, which may have started elsewhere than where the paths of the run begin."""
    os.chdir(folder)
    single_thread()
    return perform(job)
