"""How a job ends on one rank: what is recorded, who tells the user, and with which exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from transact.config import RunConfig
from transact.distributed.environment import LAUNCHER
from transact.distributed.signals import Interruption, Stopped
from transact.distributed.slurm import own_job
from transact.distributed.watchdog import SILENCE_SECONDS
from transact.errors import FAILED
from transact.launch.failures import explain, is_lost_rank
from transact.launch.last_words import last_words
from transact.models.identity import UnusableModel
from transact.stages.recover.health import Diverged

if TYPE_CHECKING:
    from transact.distributed.process import ProcessGroup
    from transact.runs.run_folder import RunFolder

CLOSING_SECONDS = 30.0  # for the tracker, once the work has stopped or failed
VERDICT_PATIENCE_SECONDS = SILENCE_SECONDS + 5


class JobFailed(Exception):
    """The work failed. shows_traceback: the reason is this rank's own. is_told: this rank tells the user. is_refusal:
    on every rank, the model is to blame: the same command would end the same."""

    def __init__(self, message: str, *, shows_traceback: bool, is_told: bool, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal
        self.shows_traceback = shows_traceback
        self.is_told = is_told


@contextmanager
def outcome_recorded(
    config: RunConfig,
    folder: RunFolder,
    group: ProcessGroup,
    *,
    clear_screen: Callable[[], None],
    when_recorded: Callable[[], None],
) -> Iterator[None]:
    """run.json says where the work failed and why; a rank that only lost another one says which.

    Args:
        clear_screen: called before anything is said, and before the process may be ended: a live view gives the
            terminal back.
        when_recorded: called on rank 0 once the end is in run.json.

    Raises:
        Stopped: as it came.
        JobFailed: for every other exception.
    """
    watchdog = group.watchdog

    def record(state: str, message: str) -> bool | None:
        """Whether this rank's verdict is the one that counts; None where it cannot be written down.

        Rank 0 writes it, the others where rank 0 is the one that is gone.
        """
        recorded = None
        if folder.attempt is not None and watchdog.speaks():
            with suppress(OSError):  # the disk may be full; the user is told all the same
                recorded = folder.end(state, message)
        if group.is_main and folder.attempt is not None:
            when_recorded()
        return recorded

    def is_to_be_told(recorded: bool | None) -> bool:
        """By the first to record it, unless a launcher does, or by all where it could not be recorded."""
        return recorded is None or (recorded and LAUNCHER not in os.environ)

    def record_failure(message: str) -> bool:
        clear_screen()
        return is_to_be_told(record("failed", message))

    def tell(message: str) -> None:
        clear_screen()
        print(last_words(message, config), file=sys.stderr, flush=True)

    def leave(name: str) -> None:
        clear_screen()
        if folder.attempt is not None:
            with suppress(OSError):
                folder.end("stopped", f"left at once, after a second {name}")
        group.interruption.say_left(name)

    group.interruption.left = leave
    watchdog.stacks = folder.path / "stacks"
    watchdog.record_failure, watchdog.tell = record_failure, tell
    try:
        yield
    except Stopped as stopped:
        clear_screen()
        record("stopped", str(stopped))
        watchdog.end()
        _leave_in_time()
        raise
    except Exception as error:
        clear_screen()
        lost = is_lost_rank(error)
        verdict = watchdog.verdict(VERDICT_PATIENCE_SECONDS) if lost else None
        refused = isinstance(error, UnusableModel)
        message = verdict or f"rank {group.rank} failed in {explain(error, watchdog.stage, config, group.world_size)}"
        if refused:
            message = f"{watchdog.stage}: {error}"
        if verdict is None:
            watchdog.report(message)
        recorded = record("diverged" if isinstance(error, Diverged) else "failed", message)
        watchdog.end()
        _leave_in_time()
        told = (not lost or watchdog.speaks()) and is_to_be_told(recorded)
        # Without a verdict what looked like a lost rank may be an error of this rank's own.
        explains_itself = verdict is not None or isinstance(error, Diverged | UnusableModel)
        raise JobFailed(message, shows_traceback=not explains_itself, is_told=told, is_refusal=refused) from error


def code_of_stop(interruption: Interruption) -> int:
    """In a SLURM job that of a process which the signal ended: the batch script must tell a stop from a failure, and
    nothing is written in run.json before the ranks have met."""
    name = interruption.asked_by
    if (
        own_job() is None or name is None or name not in signal.Signals.__members__
    ):  # it may have been the end of a launcher
        return FAILED
    return 128 + signal.Signals[name].value


def _leave_in_time() -> None:
    """Nothing that is left to do is worth holding the machines for: W&B without a network, say."""
    last_resort = threading.Timer(CLOSING_SECONDS, os._exit, [FAILED])
    last_resort.daemon = True
    last_resort.start()
