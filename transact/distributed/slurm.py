"""Queries to SLURM, through its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable

from transact.errors import Refusal, one_line

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo")
PATIENCE = (1.0, 5.0, 15.0)  # seconds between attempts: a busy controller refuses connections
UNKNOWN_JOB = "Invalid job id"  # asking again would not help
LONG_PATIENCE = (1.0, 5.0, 15.0, 30.0, 60.0, 60.0, 120.0, 120.0)  # for a backup controller to take over
EARLY_SECONDS = 90.0  # SLURM may send the warning up to a minute early
ANSWER_SECONDS = 60.0
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"})
ENDED |= {"OUT_OF_MEMORY", "REVOKED"}


class SlurmError(Refusal):
    """SLURM did not do what it was asked; the message is one line."""


def require_slurm() -> None:
    """Raise SlurmError unless SLURM's commands are on this machine."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise SlurmError(
            f"launch=slurm: SLURM is not on this machine ({missing[0]} is not found): submit from a login node of the "
            "cluster, or use launch=local"
        )


def ask(*command: str, patience: Iterable[float] = ()) -> str:
    """Run a command of SLURM and return what it prints.

    Args:
        patience: seconds to wait before each further attempt.

    Raises:
        SlurmError: the last attempt failed too.
    """
    pauses = list(patience)
    while True:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
            if done.returncode == 0:
                return done.stdout.strip()
            reason = (done.stderr or done.stdout).strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if not pauses or UNKNOWN_JOB in reason:
            raise SlurmError(f"{command[0]}: {one_line(reason)}")
        time.sleep(pauses.pop(0))


def job_states(jobs: Iterable[str], patience: Iterable[float] = PATIENCE[:1]) -> dict[str, str]:
    """Return job -> state, as squeue names it, of those jobs that SLURM still knows. patience: as of `ask`.

    Raises:
        SlurmError: SLURM does not answer, which says nothing about the jobs.
    """
    wanted = list(jobs)
    if not wanted:
        return {}
    try:
        lines = ask("squeue", "-a", "-h", "-t", "all", "-j", ",".join(wanted), "-o", "%i %T", patience=patience)
    except SlurmError as error:
        if UNKNOWN_JOB in str(error):  # of a single job that SLURM no longer knows
            return {}
        raise
    return dict(line.split(maxsplit=1) for line in lines.splitlines())


def live_jobs(jobs: Iterable[str], patience: Iterable[float] = PATIENCE[:1]) -> list[str]:
    """Return the jobs that wait or run, in the given order. patience: as of `ask`."""
    wanted = list(jobs)
    states = job_states(wanted, patience)
    return [job for job in wanted if job in states and states[job] not in ENDED]


def own_job() -> tuple[str, int] | None:
    """Return the job that this process belongs to, and how often it was requeued; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return None if job is None else (job, int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def seconds_left(job: str) -> float:
    """Return the seconds until the job's time limit; infinity without one."""
    text = ask("squeue", "-h", "-j", job, "-o", "%L", patience=LONG_PATIENCE)
    if not text[:1].isdigit():
        return float("inf")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + part
    return 86_400 * int(days or 0) + seconds


def is_running_still(job: str, restart: int, patience: Iterable[float] = PATIENCE) -> bool:
    """Return whether the job runs, in this attempt: SLURM has neither ended nor requeued it."""
    shown = dict(word.partition("=")[::2] for word in ask("scontrol", "show", "job", job, patience=patience).split())
    return shown.get("JobState") == "RUNNING" and int(shown.get("Restarts", "0")) == restart
