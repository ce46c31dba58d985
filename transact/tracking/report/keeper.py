"""Writes report.html while the run goes on, and at its end. No failure of it ends the run."""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import partial
from pathlib import Path

from transact.errors import one_line
from transact.tracking.report.sweep_page import REPORT
from transact.tracking.report.writing import write_run_page, write_sweep_page

logger = logging.getLogger(__name__)

LARGEST_SHARE = 1 / 100  # of the time, for pages while the run goes on: the ranks wait for them
LAST_SECONDS = 10.0  # at the end, for a page that is being written: by another thread, or by another point of the sweep


class PageKeeper:
    """Writes the page of a run, and that of the sweep that it is a point of.

    Args:
        folder: that of the run.
        is_point: whether the run is a point of a sweep, whose folder is the one above.
        variant_of: the folder of the run that this one is a variant of, whose page lists it.
        seconds: least time between two pages; 0: only at the end.
    """

    def __init__(self, folder: Path, *, is_point: bool, seconds: float, variant_of: Path | None = None) -> None:
        self._folder, self._is_point, self._seconds = folder, is_point, seconds
        self._variant_of = variant_of
        self._due = -math.inf if seconds > 0 else math.inf
        self._writing = threading.Lock()  # the watchdog calls `finish` from its own thread
        self._has_ended = False
        self._told: set[str] = set()

    def write_if_due(self) -> None:
        """Write the pages of a run that goes on, if they are due; the longer they take, the later the next ones."""
        begin = time.monotonic()
        if begin < self._due:
            return
        with self._writing:
            if not self._has_ended:  # this page, read earlier, must not replace the last one
                self._write([self._folder], patience_seconds=0)
        end = time.monotonic()
        self._due = end + max(self._seconds, (end - begin) / LARGEST_SHARE)

    def finish(self) -> None:
        """Write the last pages, once. Call it after the end is in run.json."""
        if not self._writing.acquire(timeout=LAST_SECONDS):
            return  # the disk does not answer
        try:
            if not self._has_ended:
                self._has_ended = True
                self._write([self._folder, *filter(None, [self._variant_of])], patience_seconds=LAST_SECONDS)
        finally:
            self._writing.release()

    def _write(self, runs: list[Path], patience_seconds: float) -> None:
        pages = {folder: partial(write_run_page, folder) for folder in runs}
        if self._is_point:
            sweep = self._folder.parent
            pages[sweep] = partial(write_sweep_page, sweep, patience_seconds=patience_seconds)
        for folder, write in pages.items():
            try:
                write()
            except Exception as error:  # noqa: BLE001 - the page is not the run
                if isinstance(error, TimeoutError) and not self._has_ended:
                    continue  # another point is writing it from nearly the same files
                message = f"{folder / REPORT} cannot be written: {one_line(error)}"
                if message not in self._told:  # the next try may succeed, once a file system answers again
                    logger.warning(message)
                self._told.add(message)
