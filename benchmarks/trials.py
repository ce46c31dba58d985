"""What the benchmarks of quality share: a job in this process, whose stages are called one by one."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import torch

from benchmarks.workload import quiet_job
from transact.config.run import RunConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.stages.chain import Prepared, prepare
from transact.stages.job import Job
from transact.stages.preflight import with_batch


def of_all_parameters(fraction: float, parent: Geometry) -> float:
    """Return a fraction of the transitional parameters as one of all parameters, which prune.remove_fraction counts."""
    return fraction * parent.transitional_parameters() / parent.parameters()


def opened_job(config: RunConfig) -> tuple[Job, Prepared]:
    """Return a job of one process in its folder, where it goes on if it was begun before, and its prepared parent."""
    group = group_of_one()
    job = quiet_job(with_batch(config, group.world_size), geometry_of(Path(config.model.path or "")), group)
    job.folder.path.mkdir(parents=True, exist_ok=True)
    job.folder.open(job.group.world_size)
    prepared = prepare(job)
    assert prepared is not None
    return job, prepared


@cache
def group_of_one() -> ProcessGroup:
    """Return a group that lives as long as the process: DeepSpeed does not work with a second one in it."""
    return process_group("cpu", 30).__enter__()


def set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def say(line: str) -> None:
    """Print a line of progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
