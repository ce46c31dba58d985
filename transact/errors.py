"""How a command ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

DONE = 0
FAILED = 1  # the work failed; the same command goes on from the last finished stage
REFUSED = 2  # the request is wrong; nothing was written


class RankFailed(RuntimeError):
    """Another rank's work failed: which and why. That rank raises its own error, and tells the user."""


FROM_BEST_TO_WORST = (DONE, REFUSED, FAILED)
LONGEST_MESSAGE = 1000  # characters: a value that fills screens tells nobody anything


def worst(codes: Iterable[int]) -> int:
    """How several ranks, or several points of a sweep, end together: one that failed has work to go on with."""
    return max(codes, default=DONE, key=FROM_BEST_TO_WORST.index)


def speaks() -> bool:
    """Whether this process is the one of all ranks that talks to the user, before they have met."""
    own = os.environ.get("RANK") if "WORLD_SIZE" in os.environ else None  # RANK alone is left from another job
    return (own or os.environ.get("SLURM_PROCID", "0")) == "0"  # torchrun's, or a bare srun's


def printable(text: str) -> str:
    """What a terminal shows as it is: control characters, and what else would act on it, as escapes.

    Line breaks stay; a tab becomes spaces.
    """
    return "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in text.expandtabs())


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(reason: object) -> str:
    """Line breaks become spaces, what would act on a terminal becomes visible, and what is very long is cut."""
    line = printable(" ".join(str(reason).split()))
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} ..."


def refuse(reason: object, *, always: bool = False) -> int:
    """Say in one line, once for all ranks, why a request is refused. Returns the exit code.

    Args:
        always: say it whichever rank this is.
    """
    if always or speaks():
        print(f"error: {one_line(reason)}", file=sys.stderr, flush=True)
    return REFUSED


def leave_at_interrupt() -> None:
    """Until the work listens to signals itself, Ctrl-C ends this process with a line: nothing is there to be saved.

    Where it is ignored, as in the background of a shell, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def interrupted(*_: object) -> NoReturn:
    """End the process after Ctrl-C, whatever it is at: an exception might be caught on its way by what is imported."""
    if speaks():
        os.write(2, b"stopped by SIGINT; the same command goes on with what is finished, or begins\n")
    os._exit(FAILED)


def leave(code: int) -> NoReturn:
    """End the process with this code, whatever native threads are still alive.

    Seen here: when the interpreter tears itself down under live threads of torch, about one run in ten aborts
    ("terminate called without an active exception"), and finished work is reported as failed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started us
            stream.flush()
    os._exit(code)
