"""Show what a job writes while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

POLL_SECONDS = 0.2
SUBMITIT_LINE = "submitit "


def follow(log: Path, is_over: Callable[[], bool]) -> None:
    """Print the lines of a growing file, which may not be there yet, until the job is over."""
    while not log.exists() and not is_over():
        time.sleep(POLL_SECONDS)
    if not log.exists():
        return
    with log.open(encoding="utf-8", errors="replace") as file:
        while not is_over():
            _print_new(file)
            time.sleep(POLL_SECONDS)
        _print_new(file)


def _print_new(file: TextIO) -> None:
    for line in file.readlines():
        if not line.startswith(SUBMITIT_LINE):
            print(line, end="", flush=True)
