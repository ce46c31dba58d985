"""launch=local: whichever process is killed or suspended, run.json and the terminal name it, once."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil

from tests.support.commands import REPOSITORY, Workplace, environment
from tests.support.runs import record_of, start, wait_until
from tests.support.slurm import wait_for
from tests.support.warm import run_warm

SECONDS = 150.0  # on a loaded machine


class Local:
    """A job of two ranks in the middle of its recovery."""

    def __init__(self, workplace: Workplace, name: str) -> None:
        self.folder = workplace.folder / name
        long = [
            "prune.rounds=1",
            "recover.tokens=1600000",
            "recover.objective=cross_entropy",
            "data.evaluation_sequences=8",
        ]
        self.launcher = start([*workplace.overrides(name), *long, "launch=local", "launch.processes=2"])
        metrics = self.folder / "metrics.jsonl"  # a step is done: there is something to save
        wait_until(lambda: metrics.is_file() and '"recover/loss"' in metrics.read_text(), self.launcher, SECONDS)
        (self.controller,) = psutil.Process(self.launcher.pid).children()
        self.ranks = sorted(self.controller.children(), key=lambda each: each.pid)  # in which order they are started
        assert len(self.ranks) == 2

    @property
    def record(self) -> dict[str, Any]:
        return record_of(self.folder)

    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")

    def output(self) -> str:
        output, _ = self.launcher.communicate(timeout=SECONDS)
        psutil.wait_procs([self.controller, *self.ranks], timeout=SECONDS)
        assert not [each for each in self.ranks if each.is_running()]
        return output

    def status(self) -> str:
        command = ["status", str(self.folder)]
        return run_warm(command, module="transact", cwd=REPOSITORY, environment=environment(), seconds=SECONDS).stdout


def test_a_rank_that_is_killed_is_named_with_the_signal_and_told_once(workplace: Workplace) -> None:
    """Rank 0 of one job and rank 1 of another, at the same time."""
    jobs = [Local(workplace, f"killed_rank_{rank}") for rank in (0, 1)]
    for rank, job in enumerate(jobs):
        assert "At work on round_0" in job.page()
        job.ranks[rank].kill()
    for rank, job in enumerate(jobs):
        output = job.output()
        said = f"rank {rank} died in round_01/recover: killed by SIGKILL"
        assert rank == 0 or "Failed: rank 1 died in round_01/recover: " in job.page()  # which rank 0 writes
        assert job.launcher.returncode == 1
        assert job.record["state"] == "failed" and job.record["error"].startswith(said)
        told = output.count(f"error: {said}")
        assert output.count("error: rank ") == told == output.count("  go on:   python -m") == 1
        assert said in job.status() and " failed " in job.status()


def test_a_rank_that_was_suspended_is_named_and_leaves_when_it_wakes(workplace: Workplace) -> None:
    """Rank 0 of one job and rank 1 of another, at the same time: most of it is waiting for the other's silence."""
    jobs = [Local(workplace, f"suspended_rank_{rank}") for rank in (0, 1)]
    for rank, job in enumerate(jobs):
        job.ranks[rank].suspend()
    for rank, job in enumerate(jobs):
        wait_for(lambda job=job, rank=rank: _has_ended(job.ranks[1 - rank]), SECONDS, "the other leaves")
        before = job.record
        assert before["state"] == "failed" and before["error"].startswith(f"rank {rank} died in round_01/recover")
        job.ranks[rank].resume()
        output = job.output()
        assert job.launcher.returncode == 1
        assert job.record["error"] == before["error"]
        assert output.count("error: rank ") == output.count(f"error: {before['error']}") == 1


def _has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_without_its_controller_the_job_saves_stops_and_says_so(workplace: Workplace) -> None:
    job = Local(workplace, "killed_controller")
    job.controller.kill()
    output = job.output()
    said = f"stopped by the end of process {job.controller.pid}, which had started it"
    assert job.launcher.returncode == 1
    assert (job.record["state"], job.record["error"]) == ("stopped", said)
    assert said in output and list(job.folder.glob("checkpoints/*/manifest.json"))


def test_without_the_command_its_ranks_save_and_stop(workplace: Workplace) -> None:
    job = Local(workplace, "killed_command")
    job.launcher.kill()
    job.output()
    said = f"stopped by the end of process {job.launcher.pid}, which had started it"
    assert (job.record["state"], job.record["error"]) == ("stopped", said)
    assert list(job.folder.glob("checkpoints/*/manifest.json"))


def test_where_all_are_killed_at_once_status_says_so(workplace: Workplace) -> None:
    job = Local(workplace, "killed_all")
    processes = [psutil.Process(job.launcher.pid), job.controller, *job.ranks]
    for process in processes:
        process.suspend()  # none may have a last word
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    job.output()
    assert job.record["state"] == "running"
    assert " died " in job.status() and "all its processes were killed" in job.status()
