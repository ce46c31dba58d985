"""Count the attempts of a SLURM job by what ended them, and requeue the job while that may help.

    python -m transact.launch.attempt begin FOLDER [limits]          in the batch script, before srun
    python -m transact.launch.attempt end FOLDER EXIT_CODE [limits]  after it

Why here and not in a rank: a rank can be killed, and a rank that requeues its job ends the others while they still
save. The counts are in run.json, which no rank writes before `begin` or after `end`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from transact.distributed.file_lock import exclusive
from transact.distributed.signals import SIGNALS, WARNINGS
from transact.distributed.slurm import (
    EARLY_SECONDS,
    LONG_PATIENCE,
    SlurmError,
    ask,
    is_running_still,
    live_jobs,
    own_job,
    seconds_left,
)
from transact.errors import DONE, FAILED, REFUSED, killed_by, refuse, say_error
from transact.files import DamagedFile, write_json
from transact.runs.run_record import LAYOUT, RECORD, read_record

KINDS = ("timeouts", "preemptions", "failures")
SIGNAL_CODES = {128 + number.value: number.name for number in SIGNALS}
TAKEN = "SLURM took the nodes (preemption, requeue, or a node that broke down)"


def begin(folder: Path, limits: dict[str, int]) -> int:
    """Record that an attempt begins, and return an exit code: 0 when the ranks may start."""
    own = own_job()
    if own is None:
        return refuse("python -m transact.launch.attempt belongs into the batch script of a SLURM job")
    with exclusive(folder / "attempt.lock"):
        return _begin(*own, folder, limits)


def _begin(job: str, restart: int, folder: Path, limits: dict[str, int]) -> int:
    record = _read(folder)
    previous = record.get("attempt")
    if previous is None or previous["job"] != job:
        if previous is not None and live_jobs([previous["job"]], LONG_PATIENCE):
            return refuse(f"{str(folder)!r} belongs to job {previous['job']}, which is still alive")
        record["interruptions"] = dict.fromkeys(KINDS, 0) | {"last": None}
    elif not previous["ended"] and previous["restart"] != restart:
        _count(record, "preemptions", TAKEN)
    was_done = record.get("state") == "done"  # a finished run may be started again for more work
    record |= {"state": "starting", "error": None, "attempt": _attempt(job, restart, ended=False) | {"done": was_done}}
    exceeded = _exceeded(record, limits)
    if exceeded is not None:
        record |= {"state": "failed", "error": exceeded}
    write_json(folder / RECORD, record)
    return FAILED if exceeded is not None else DONE


def end(folder: Path, code: int, limits: dict[str, int], signal_delay: float) -> int:
    """Count how the attempt ended, requeue the job unless it is done, refused or out of attempts, and return `code`."""
    own, record = own_job(), _read(folder)
    if own is None or code == DONE or record.get("state") == "done":
        return code
    job, restart = own
    if not is_running_still(job, restart, LONG_PATIENCE):
        return code  # SLURM has decided already: cancelled, requeued, or out of time
    if record.get("attempt", {}).get("job") != job:
        return code  # another job runs in this folder, and its counts do not include this job's failures
    if code == REFUSED and "run_id" not in record:
        write_json(folder / RECORD, record | {"state": "failed", "error": "the request was refused: the log says why"})
        return code
    kind, reason = _why(record, job, code, signal_delay)
    if kind is None:
        return code
    _count(record, kind, reason)
    record["attempt"] = _attempt(job, restart, ended=True)
    exceeded = _exceeded(record, limits)
    if exceeded is not None:
        record |= {"state": "failed", "error": exceeded}
    write_json(folder / RECORD, record)
    if exceeded is not None:
        say_error(exceeded)
        return code
    print(f"{reason}: job {job} is queued again", flush=True)
    ask("scontrol", "requeue", job, patience=LONG_PATIENCE)
    return code


def _read(folder: Path) -> dict[str, Any]:
    """Return run.json, or the record of a run that has just been submitted.

    Raises:
        DamagedFile: it cannot be read.
    """
    return read_record(folder) or {"layout": LAYOUT, "state": "submitted"}


def _attempt(job: str, restart: int, *, ended: bool) -> dict[str, Any]:
    return {"job": job, "restart": restart, "since": time.time(), "ended": ended}


def _count(record: dict[str, Any], kind: str, reason: str) -> None:
    counts = record.setdefault("interruptions", dict.fromkeys(KINDS, 0))
    counts[kind] += 1
    counts["last"] = reason


def _exceeded(record: dict[str, Any], limits: dict[str, int]) -> str | None:
    """Return the error of a job that has exceeded a limit and is not requeued, or None."""
    counts = record["interruptions"]
    for kind in KINDS:
        if counts[kind] > limits[kind]:
            return f"{counts['last']} ({kind}: {counts[kind]}, launch.max_{kind}={limits[kind]}: given up)"
    return None


def _why(record: dict[str, Any], job: str, code: int, signal_delay: float) -> tuple[str | None, str]:
    """Return the kind and the reason of an attempt's failure; the kind is None where a requeue would not help."""
    error = record.get("error")
    if record.get("state") == "diverged":
        return None, str(error)  # it would diverge again
    name = str(error).rpartition(" ")[2] if record.get("state") == "stopped" else SIGNAL_CODES.get(code)
    if name in WARNINGS:
        near = seconds_left(job) <= signal_delay + EARLY_SECONDS
        return ("timeouts", f"time limit ({name})") if near else ("preemptions", f"asked to leave ({name})")
    if name == "SIGTERM":
        return "preemptions", "asked to leave (SIGTERM)"
    if name is not None:
        return None, f"stopped by {name}"
    if code == REFUSED and record.get("state") == "failed":
        return None, str(error)  # the model is unusable, as its first measurement showed, or the text
    if code == REFUSED:  # a node that does not see a file system refuses what another node accepted
        return "failures", "an attempt was refused that was accepted before: its log says why"
    killed = _killed_by(code)
    if error is None and killed is None:
        return "failures", f"the ranks ended with exit code {code} and left no reason (their logs may tell)"
    return "failures", ": ".join(each for each in (error, killed) if each is not None)


def _killed_by(code: int) -> str | None:
    """Return which signal killed a rank, or None.

    srun exits with the highest code of all ranks: 128 plus the signal's number where a signal killed one.
    """
    try:
        return f"a rank was {killed_by(code - 128)}"
    except ValueError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moment", choices=["begin", "end"])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("code", type=int, nargs="?", default=FAILED, help="that srun ended with")
    parser.add_argument("--max-timeouts", type=int, default=100)
    parser.add_argument("--max-preemptions", type=int, default=100)
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--signal-delay", type=float, default=300, help="seconds, as in sbatch --signal=USR2@300")
    given = parser.parse_args()
    limits = {kind: getattr(given, f"max_{kind}") for kind in KINDS}
    try:
        if given.moment == "begin":
            return begin(given.folder, limits)
        return end(given.folder, given.code, limits, given.signal_delay)
    except (SlurmError, DamagedFile, OSError) as error:
        say_error(error)
        return given.code if given.moment == "end" else FAILED


if __name__ == "__main__":
    sys.exit(main())
