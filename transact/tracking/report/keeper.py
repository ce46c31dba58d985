"""report.html while the run goes on, and as it ended. No failure of it reaches the run."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from transact.errors import one_line
from transact.files import TEMPORARY_SUFFIX
from transact.tracking.report.sweep_page import REPORT
from transact.tracking.report.writing import write_run_page, write_sweep_page

logger = logging.getLogger(__name__)

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 120.0  # for one page
PATIENCE_SECONDS = 1200.0  # after one that took longer: it may be so again, and takes time from the training
WRITE = """
import sys
from pathlib import Path
from transact.tracking.report.writing import write_run_page, write_sweep_page
write_run_page(Path(sys.argv[1]))
for sweep in sys.argv[2:]:
    write_sweep_page(Path(sweep))
"""
CHILD_SECONDS = 3.0  # that a page which is being written at the end has
SWEEP_SECONDS = 10.0  # for the sweep's page at the end: its other points may be writing it


class PageKeeper:
    """Writes the page of a run, and that of the sweep that it is a point of.

    Args:
        folder: of the run.
        is_point: of a sweep, whose folder is the one above.
        variant_of: the folder of the run that it is a variant of, whose page lists it.
        seconds: between two pages; 0: only at the end.
    """

    def __init__(self, folder: Path, *, is_point: bool, seconds: float, variant_of: Path | None = None) -> None:
        self._folder, self._is_point, self._seconds = folder, is_point, seconds
        self._variant_of = variant_of
        self._ended = threading.Event()
        self._started = False
        self._finishing = threading.Lock()
        self._starting = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """In a process of its own each time: reading a long log must not hold up training."""
        self._started = True
        if self._seconds > 0:
            threading.Thread(target=self._keep, name="report page", daemon=True).start()

    def finish(self) -> None:
        """Write the last page, once; does nothing where there is no run yet. Call it after the end is in run.json."""
        with self._finishing:
            if not self._started or self._ended.is_set():
                return
            with self._starting:
                self._ended.set()
            try:
                self._wait_for_child()  # what it has read is older, and must not come last
                write_run_page(self._folder)
                if self._variant_of is not None:
                    write_run_page(self._variant_of)
            except Exception as error:  # noqa: BLE001 - the page is not the run
                logger.warning("report.html cannot be written: %s", one_line(error))
            if self._is_point:
                # In a thread that is left when another point, on a machine that is gone, holds the lock.
                thread = threading.Thread(target=self._write_sweep_page, daemon=True)
                thread.start()
                thread.join(SWEEP_SECONDS)

    def _write_sweep_page(self) -> None:
        try:
            write_sweep_page(self._folder.parent)
        except Exception as error:  # noqa: BLE001 - likewise
            logger.warning("the sweep's report.html cannot be written: %s", one_line(error))

    def _keep(self) -> None:
        folders = [self._folder, *([self._folder.parent] if self._is_point else [])]
        wait = min(FIRST_SECONDS, self._seconds)
        is_told = False
        while not self._ended.wait(wait):
            wait = self._seconds
            try:
                self._write_in_child(folders)
                is_told = False
            except subprocess.TimeoutExpired:
                logger.warning("report.html takes longer than %g seconds: the next try is later", LONGEST_SECONDS)
                wait = max(self._seconds, PATIENCE_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                if not is_told:  # the next turn may go better: a file system that did not answer, say
                    logger.warning("report.html cannot be written while the run goes on: %s", one_line(error))
                is_told = True

    def _write_in_child(self, folders: list[Path]) -> None:
        """Does nothing once the run has ended.

        Raises:
            OSError, subprocess.SubprocessError: the page was not written, though the run goes on.
        """
        with tempfile.TemporaryFile() as errors:
            with self._starting:
                if self._ended.is_set():
                    return
                command = [sys.executable, "-c", WRITE, *map(str, folders)]
                nowhere = subprocess.DEVNULL
                self._child = child = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=errors)
            try:
                code = child.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                self._end(child)
                raise
            if code != 0 and not self._ended.is_set():
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise subprocess.SubprocessError(said[-1] if said else f"exit code {code}")

    def _wait_for_child(self) -> None:
        if self._child is None:
            return
        try:
            self._child.wait(CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            self._end(self._child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait(CHILD_SECONDS)
        for folder in (self._folder, self._folder.parent):
            for left in folder.glob(f"{REPORT}.{child.pid}.*{TEMPORARY_SUFFIX}"):
                left.unlink(missing_ok=True)
