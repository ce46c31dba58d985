"""report.html in the folder that it tells of."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from transact.distributed.file_lock import exclusive
from transact.files import TEMPORARY_SUFFIX, publish
from transact.runs.run_folder import is_run, run_folders
from transact.tracking.report.html_page import render
from transact.tracking.report.run_files import read_run
from transact.tracking.report.run_page import run_page
from transact.tracking.report.sweep_files import REPORT, read_sweep
from transact.tracking.report.sweep_page import sweep_page

LOCK = "report.lock"  # of a sweep, whose points write the same page


def write_run_page(folder: Path) -> Path:
    """Returns the page's path.

    Raises:
        OSError: it cannot be written.
    """
    return _write(folder / REPORT, render(run_page(read_run(folder))))


def write_sweep_page(folder: Path) -> Path:
    """One writer at a time, each reads what is there then: the last one knows all."""
    with exclusive(folder / LOCK):
        return _write(folder / REPORT, render(sweep_page(read_sweep(folder))))


def write_pages(folder: Path) -> list[Path]:
    """The page of a run after those of its variants; or that of a sweep, after those of its points.

    Raises:
        ValueError: the folder holds neither.
        OSError: a page cannot be written.
    """
    if is_run(folder):
        return [write_run_page(each) for each in reversed(run_folders(folder))]
    return [*(write_run_page(each) for each in run_folders(folder)), write_sweep_page(folder)]


def _write(path: Path, text: str) -> Path:
    """Under a name of this thread's own first: a run, and who watches it, may write the same page at once."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
