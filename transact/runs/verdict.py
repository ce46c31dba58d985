"""How an attempt ended, in run.json: written once, by the first to notice, a rank or the process that started it."""

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
LOCK_SECONDS = 5.0  # a suspended process may hold the lock: then the verdict is written without it
DIED = "rank {rank} died in {stage}: {why}"


def end_attempt(folder: Path, attempt: float | None, state: str, error: str | None) -> bool:
    """Record how an attempt ended, unless that is recorded already. Returns whether this call has recorded it.

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
    """Return the error that another process has recorded as the end of an attempt still running here, or None."""
    record = _record_of(folder, attempt)
    if record is None or record["state"] in (RUNNING, "done"):
        return None
    return str(record["error"])


def how_it_ended(folder: Path, since: float) -> tuple[str, str] | None:
    """Return the state and the reason of an attempt that has ended; None where none has.

    Args:
        since: unix seconds; a run.json from before that is of another attempt.
    """
    try:
        if (folder / RECORD).stat().st_mtime < since:
            return None
        record = read_json(folder / RECORD)
        return None if record["state"] in LIVE else (record["state"], str(record["error"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _record_of(folder: Path, attempt: float | None) -> dict[str, Any] | None:
    """Return run.json; None if it is of another attempt, or cannot be read."""
    try:
        record = read_json(folder / RECORD)
        return record if attempt is not None and record["starts"][-1] == attempt else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankEnd:
    """How a rank's process ended. code: of subprocess, negative for a signal. by_us: its launcher ended it."""

    rank: int
    code: int
    by_us: bool = False

    def why(self) -> str:
        """Return the reason in words."""
        if self.code >= 0:
            return f"exit code {self.code}, and it left no reason"
        return killed_by(-self.code)


def name_the_dead(folder: Path, since: float, ends: list[RankEnd], asked: str | None = None) -> None:
    """Record in run.json which rank died and how, once all have ended: only the parent of the ranks knows.

    A killed rank is named in place of what the others guessed, and an attempt whose ranks recorded no end gets a
    verdict.

    Args:
        since: unix seconds; the record of an earlier attempt is not changed.
        ends: of all ranks, in the order in which they ended.
        asked: the signal that asked them to stop before they could listen.
    """
    with _alone(folder):
        try:
            record = read_json(folder / RECORD)
            if record["state"] not in (*LIVE, "failed") or _begun(folder, record) < since:
                return
        except (OSError, ValueError, LookupError, TypeError):
            return  # no attempt has begun
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
    """Return when the attempt of a record began, in unix seconds."""
    if record["state"] == "starting":
        return (folder / RECORD).stat().st_mtime
    return float(record["starts"][-1])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Admit one process at a time, where the file system can lock folders. Leaves no file behind."""
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
    """Try to take the lock. Returns False while another process holds it; True where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
