"""A run keeps its page: not too often, the last one tells the end, and no failure gets out."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.report_folders import MadeUpRun, write_run
from tests.unit.report.test_pages import words_of
from transact.distributed.file_lock import exclusive
from transact.tracking.report import keeper
from transact.tracking.report.keeper import PageKeeper
from transact.tracking.report.writing import LOCK, write_run_page

RUNNING = MadeUpRun(steps=4, state="running", done=1)
DONE = MadeUpRun(steps=4)


def state_of(folder: Path) -> str:
    words = words_of((folder / "report.html").read_text(encoding="utf-8"))
    return next(word for word in words if word in ("running", "done"))


def test_pages_come_at_their_time_and_at_the_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep" / "point", RUNNING)
    pages = PageKeeper(folder, is_point=True, seconds=3600)
    pages.write_if_due()
    assert state_of(folder) == "running"
    assert (folder.parent / "report.html").is_file()
    write_run(folder, DONE)
    pages.write_if_due()
    assert state_of(folder) == "running"
    pages.finish()
    assert state_of(folder) == "done"
    assert "1 done" in " ".join(words_of((folder.parent / "report.html").read_text(encoding="utf-8")))


def test_with_no_seconds_there_is_only_the_last_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", RUNNING)
    pages = PageKeeper(folder, is_point=False, seconds=0)
    pages.write_if_due()
    assert not (folder / "report.html").exists()
    pages.finish()
    assert state_of(folder) == "running"


def test_pages_that_take_long_come_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one after a hundred times as long as the last one took."""
    now = 1000.0
    written = []

    def take_three_seconds(folder: Path) -> None:
        nonlocal now
        now += 3
        written.append(now)

    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(keeper, "write_run_page", take_three_seconds)
    pages = PageKeeper(tmp_path, is_point=False, seconds=120)
    for _ in range(700):
        pages.write_if_due()
        now += 1
    assert written == [1003, 1306, 1609]


def test_a_page_that_is_being_written_at_the_end_does_not_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", RUNNING)
    begun = threading.Event()

    def write_slowly(folder: Path) -> None:
        begun.set()
        write_run_page(folder)
        before = (folder / "report.html").read_bytes()
        time.sleep(0.2)
        (folder / "report.html").write_bytes(before)

    monkeypatch.setattr(keeper, "write_run_page", write_slowly)
    pages = PageKeeper(folder, is_point=False, seconds=3600)
    writing = threading.Thread(target=pages.write_if_due)
    writing.start()
    assert begun.wait(30)
    monkeypatch.setattr(keeper, "write_run_page", write_run_page)
    write_run(folder, DONE)
    pages.finish()
    writing.join()
    assert state_of(folder) == "done"
    assert not list(folder.glob("*.tmp"))


def test_a_page_that_cannot_be_written_is_told_once_and_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "sweep" / "point", DONE)
    (folder / "report.html").mkdir()
    (folder / "report.html" / "file").touch()
    (folder.parent / LOCK).mkdir()
    pages = PageKeeper(folder, is_point=True, seconds=1e-9)
    for _ in range(2):
        pages.write_if_due()
    pages.finish()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(f"{folder / 'report.html'} cannot be written: ")
    assert told[1].startswith(f"{folder.parent / 'report.html'} cannot be written: ")


def test_a_sweep_that_another_point_holds_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "LAST_SECONDS", 0.1)
    folder = write_run(tmp_path / "sweep" / "point", DONE)
    pages = PageKeeper(folder, is_point=True, seconds=3600)
    with exclusive(folder.parent / LOCK):
        pages.write_if_due()
        assert not caplog.records
        pages.finish()
    assert state_of(folder) == "done"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("cannot be written: TimeoutError: another process has held report.lock for 0.1 s")
