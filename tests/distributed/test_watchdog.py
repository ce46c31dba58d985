"""Ranks that hang or die are noticed by threads, whatever the main threads wait for."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from tests.support.ports import free_port
from tests.support.warm import warm_context


def start(function: Any, folder: Path) -> list[Any]:
    """Two processes that run `function(rank, folder)` as ranks of one group; none of them is to end well."""
    context = warm_context()
    port = str(free_port())
    processes = [context.Process(target=run, args=(function, rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def run(function: Any, rank: int, port: str, folder: Path) -> None:
    output = (folder / f"rank_{rank}.log").open("w")
    os.dup2(output.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    function(rank, folder)


def hang(rank: int, folder: Path) -> None:
    from transact.distributed.process import process_group

    with process_group("cpu", timeout_minutes=0.1) as group:
        group.watchdog.stage = "round_01/recover"
        group.watchdog.stacks = folder / "stacks"
        group.watchdog.record_failure = lambda message: (folder / f"recorded_{rank}").write_text(message) and None
        if rank == 1:
            endless_loop()
        group.barrier()


def endless_loop() -> None:
    while True:
        time.sleep(0.1)


def test_a_rank_that_hangs_ends_the_job_with_everybodys_stack(tmp_path: Path) -> None:
    processes = start(hang, tmp_path)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 1
    assert "endless_loop" in (tmp_path / "stacks" / "rank_00001.txt").read_text()
    assert "in barrier" in (tmp_path / "stacks" / "rank_00000.txt").read_text()
    told = (tmp_path / "rank_0.log").read_text()
    assert "error: no progress for 0.1 minutes in round_01/recover" in told
    assert (tmp_path / "recorded_0").read_text() in told


def wait_for_ever(rank: int, folder: Path) -> None:
    """Without a collective that would notice: only the watchdogs can."""
    from transact.distributed.process import process_group

    with process_group("cpu", timeout_minutes=30) as group:
        group.watchdog.stage = "round_01/select"
        (folder / f"ready_{rank}").touch()
        endless_loop()


def is_ready(folder: Path) -> bool:
    return all((folder / f"ready_{rank}").exists() for rank in range(2))


def test_a_lost_rank_is_noticed_within_30_seconds_and_nothing_listens_to_other_machines(tmp_path: Path) -> None:
    """Killed: the connections close. Stopped: nothing more comes, as from a machine without power. Side by side."""
    cases = [(1, signal.SIGKILL), (0, signal.SIGKILL), (0, signal.SIGSTOP)]
    folders = [tmp_path / f"{number.name}_{rank}" for rank, number in cases]
    for folder in folders:
        folder.mkdir()
    jobs = [start(wait_for_ever, folder) for folder in folders]
    while not all(is_ready(folder) for folder in folders):
        time.sleep(0.1)
    for process in itertools.chain(*jobs):
        listening = [each for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]
        assert {each.laddr.ip for each in listening} <= {"127.0.0.1", "::1"}
    for (rank, number), processes in zip(cases, jobs, strict=True):
        os.kill(processes[rank].pid, number)
    begin = time.monotonic()
    for (rank, _), processes, folder in zip(cases, jobs, folders, strict=True):
        survivor = processes[1 - rank]
        survivor.join(timeout=60)
        assert time.monotonic() - begin < 30
        assert survivor.exitcode == 1
        assert f"error: rank {rank} died in round_01/select" in (folder / f"rank_{1 - rank}.log").read_text()
        processes[rank].kill()


def fail_before_joining(rank: int, folder: Path) -> None:
    """As with a GPU that is broken: the rank has come, and never joins the group."""
    from transact.distributed import process

    def broken(requested: str, local_rank: int) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    if rank == 1:
        patch.object(process, "rank_device", broken).start()  # refuses a name that is not there
    with process.process_group("cpu", 30):
        raise AssertionError("it was to fail")


def test_a_rank_that_fails_at_the_start_ends_the_others(tmp_path: Path) -> None:
    processes = start(fail_before_joining, tmp_path)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 1
    assert "error: rank 1 failed in the start: RuntimeError: CUDA error" in (tmp_path / "rank_0.log").read_text()
