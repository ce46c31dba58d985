"""Runs that are submitted to the tests' SLURM, and what is asked of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import REPOSITORY, Workplace, command, environment
from tests.support.runs import record_of
from tests.support.slurm import Slurm, wait_for
from tests.support.warm import run_warm
from transact.files import read_json
from transact.runs.metrics import read_metrics

STEPS = 64
TOKENS_PER_STEP = 8 * 64
SECONDS = 240.0  # for what takes half a minute on a quiet machine


@dataclass(frozen=True)
class Submitted:
    """A run and its job."""

    slurm: Slurm
    folder: Path
    job: str
    output: str

    @property
    def record(self) -> dict[str, Any]:
        return record_of(self.folder)

    def counts(self) -> tuple[int, int, int]:
        found = self.record["interruptions"]
        return found["timeouts"], found["preemptions"], found["failures"]

    def wait_until_training(self, steps: int, attempt: int, seconds: float = SECONDS) -> None:
        """Until the job was queued again that often and has done that many steps since."""

        def is_so() -> bool:
            now = self.record.get("attempt", {})
            metrics = self.folder / "metrics.jsonl"
            if now.get("restart") != attempt or now["ended"] or not metrics.is_file():
                return False
            return sum("recover/loss" in row and row["time"] > now["since"] for row in read_metrics(metrics)) >= steps

        wait_for(is_so, seconds, f"{steps} steps in attempt {attempt} of job {self.job}")

    def wait_until_over(self, state: str = "COMPLETED", seconds: float = SECONDS) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        found = self.slurm.wait_for_state(self.job, *ended, seconds=seconds)
        assert found == state, f"{found}: {self.record.get('error')}\n{self.log()[-3000:]}"

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.folder / "logs").glob("*.out")))

    def kill_rank(self, rank: int) -> None:
        os.kill(self.slurm.ranks_of(self.job)[rank], signal.SIGKILL)


def cluster_environment(slurm: Slurm) -> dict[str, str]:
    """Of a user's shell on the login node."""
    return environment() | slurm.environment()


def overrides(workplace: Workplace, name: str) -> list[str]:
    """One round on two nodes, long enough to be hit in the middle."""
    changed = ["prune.rounds=1", f"recover.tokens={STEPS * TOKENS_PER_STEP}", "recover.validations=4"]
    changed.append("recover.objective=cross_entropy")
    return [*workplace.overrides(name), *changed, "launch=slurm", "launch.nodes=2", "launch.gpus_per_node=1"]


def transact_as_users_do(slurm: Slurm, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command to its end, in an interpreter of its own."""
    return subprocess.run(
        command(arguments),
        cwd=REPOSITORY,
        env=cluster_environment(slurm),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def transact(slurm: Slurm, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command to its end, in a process that has its imports already; the jobs that it submits have not."""
    return run_warm(arguments, cwd=REPOSITORY, environment=cluster_environment(slurm), seconds=SECONDS)


def status(slurm: Slurm, folder: Path) -> str:
    """What `python -m transact status` prints."""
    shown = run_warm(
        ["status", str(folder)], module="transact", cwd=REPOSITORY, environment=cluster_environment(slurm), seconds=60
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def submit(slurm: Slurm, workplace: Workplace, name: str, *changes: str) -> Submitted:
    done = transact(slurm, [*overrides(workplace, name), *changes])
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = re.findall(r"^submitted: job (\d+)$", done.stdout, re.MULTILINE)
    return Submitted(slurm=slurm, folder=workplace.folder / name, job=job, output=done.stdout)


def seconds_of(folder: Path, *stages: str) -> float:
    """That stages took, by run.json."""
    found = read_json(folder / "run.json")["stages"]
    return sum(float(found[stage]["seconds"]) for stage in stages)
