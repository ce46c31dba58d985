"""How an attempt ended, in run.json: written once, by whoever notices first, a rank or a process that started it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transact.errors import Stopped, killed_by
from transact.files import read_json, write_json
from transact.runs.run_record import RECORD

RUNNING = "running"
LIVE = (RUNNING, "starting", "submitted")
LOCK_SECONDS = 5.0  # a suspended process may hold the lock: the verdict is worth more than the order of two
DIED = "rank {rank} died in {stage}: {why}"


def end_attempt(folder: Path, attempt: float | None, state: str, error: str | None) -> bool:
    """Record how an attempt ended, unless that is recorded. Returns whether it was not.

    Args:
        attempt: when it started, as run.json says; None: there is no such record yet.
    """
    with _alone(folder):
        record = _record_of(folder, attempt)
        if record is None or record["state"] != RUNNING:
            return False
        write_json(folder / RECORD, record | {"state": state, "error": error})
        return True


def ended_otherwise(folder: Path, attempt: float | None) -> str | None:
    """What somebody else has recorded as the end of an attempt that is still at work here."""
    record = _record_of(folder, attempt)
    if record is None or record["state"] in (RUNNING, "done"):
        return None
    return str(record["error"])


def how_it_ended(folder: Path, since: float) -> tuple[str, str] | None:
    """State and reason of an attempt that has ended.

    Args:
        since: unix seconds; what run.json says from before that is of another attempt.
    """
    try:
        if (folder / RECORD).stat().st_mtime < since:
            return None
        record = read_json(folder / RECORD)
        return None if record["state"] in LIVE else (record["state"], str(record["error"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _record_of(folder: Path, attempt: float | None) -> dict[str, Any] | None:
    """None if it is of another attempt, or cannot be read."""
    try:
        record = read_json(folder / RECORD)
        return record if attempt is not None and record["starts"][-1] == attempt else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankEnd:
    """How a rank's process ended. code: of subprocess: negative, a signal's number. by_us: ended by its launcher."""

    rank: int
    code: int
    by_us: bool = False

    def why(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}, and it left no reason"
        return killed_by(-self.code)


def name_the_dead(folder: Path, since: float, ends: list[RankEnd], asked: str | None = None) -> None:
    """Write into run.json what only the parent of the ranks knows, once all have ended.

    A rank that was killed is named in place of what the others took it for, and an attempt of which no rank could say
    how it ended gets a verdict.

    Args:
        since: unix seconds; an earlier attempt is let be.
        ends: of all ranks, in the order in which they ended.
        asked: the signal that asked them to stop before they could listen.
    """
    with _alone(folder):
        try:
            record = read_json(folder / RECORD)
            if record["state"] not in (*LIVE, "failed") or _begun(folder, record) < since:
                return
        except (OSError, ValueError, LookupError, TypeError):
            return  # nothing was begun
        stage = record.get("stage") or "the start"
        killed = [end for end in ends if end.code < 0 and not end.by_us]
        first = next(iter(killed or [end for end in ends if end.code != 0]), None)
        ended_by = {-end.code for end in killed}
        if asked is not None and record["state"] in LIVE and ended_by <= {signal.SIGTERM, signal.Signals[asked]}:
            state, error = "stopped", str(Stopped(asked))
        elif first is None:
            return
        else:
            state, error = "failed", DIED.format(rank=first.rank, stage=stage, why=first.why())
            is_guess = " died in " in str(record["error"])
            if record["state"] not in LIVE and not (killed and is_guess):
                return
        write_json(folder / RECORD, record | {"state": state, "error": error})


def _begun(folder: Path, record: dict[str, Any]) -> float:
    """When the attempt that a record tells of began, in unix seconds."""
    if record["state"] == "starting":
        return (folder / RECORD).stat().st_mtime
    return float(record["starts"][-1])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks of folders; it leaves no file behind."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _is_locked(descriptor) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether nobody else holds it now, or nobody can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
