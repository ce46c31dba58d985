"""How a command ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

DONE = 0
FAILED = 1  # the work failed; the same command goes on from the last finished stage
REFUSED = 2  # the request is wrong; nothing was written


LONGEST_MESSAGE = 1000  # characters: a value that fills screens tells nobody anything


def refuse(reason: object) -> int:
    """Say in one line, once for all ranks, why a request is refused. Returns the exit code."""
    line = " ".join(str(reason).split())
    if os.environ.get("RANK", "0") == "0":
        shown = line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} ..."
        print(f"error: {shown}", file=sys.stderr, flush=True)
    return REFUSED


def leave(code: int) -> NoReturn:
    """End the process with this code, whatever native threads are still alive.

    Seen here: when the interpreter tears itself down under live threads of torch, about one run in ten aborts
    ("terminate called without an active exception"), and finished work is reported as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
