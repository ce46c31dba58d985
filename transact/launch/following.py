"""Show the output of a job while it runs: the lines of its log, and the progress that rank 0 reports."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from transact.tracking.live import is_terminal
from transact.tracking.view import VARIABLE, View, replay

POLL_SECONDS = 0.2
SUBMITIT_LINE = "submitit "


@contextmanager
def view_events_for_ranks(is_awaited: bool) -> Iterator[Path | None]:
    """Yield the file to which ranks started inside write their progress; None where no terminal shows it."""
    if not is_awaited or not is_terminal(sys.stderr):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="transact_view_") as folder:
        path = Path(folder) / "events.jsonl"
        os.environ[VARIABLE] = str(path)
        try:
            yield path
        finally:
            del os.environ[VARIABLE]


def follow(
    log: Path,
    is_over: Callable[[], bool],
    view: View,
    events: Path | None = None,
    is_news: Callable[[str], bool] = lambda line: True,
) -> None:
    """Show the lines of a growing file, which may not be there yet, until the job is over.

    Args:
        events: the file of rank 0's view events, where it writes them.
        is_news: whether a line is shown.
    """
    tails = [_Tail(log, lambda line: _show(view, line) if is_news(line) else None)]
    if events is not None:
        tails.append(_Tail(events, lambda line: replay(view, line)))
    is_last = False
    while not is_last:
        is_last = is_over()
        for tail in tails:
            tail.read()
        if not is_last:
            time.sleep(POLL_SECONDS)


class _Tail:
    """A reader that passes on the lines of a growing file as soon as they are complete."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self._path, self._show = path, show
        self._file: TextIO | None = None
        self._begun = ""

    def read(self) -> None:
        """Pass on the lines that were completed since the last call."""
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open(encoding="utf-8", errors="replace")
        *whole, self._begun = (self._begun + self._file.read()).split("\n")
        for line in whole:
            self._show(line)


def _show(view: View, line: str) -> None:
    if not line.startswith(SUBMITIT_LINE):
        view.say(line)
