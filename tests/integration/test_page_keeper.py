"""A run keeps its page: the last one tells the end, whatever was being written then, and no failure gets out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.report_folders import MadeUpRun, write_run
from tests.unit.report.test_pages import words_of
from transact.tracking.report import keeper
from transact.tracking.report.keeper import PageKeeper

READS_AND_WAITS = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "begun").touch()
time.sleep({seconds})
(folder / "report.html").write_text("what was known before the end")
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.01)


def last_words(folder: Path) -> list[str]:
    return words_of((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("seconds", [0.5, 60.0])
def test_a_page_that_is_being_written_at_the_end_does_not_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(keeper, "WRITE", READS_AND_WAITS.format(seconds=seconds))
    monkeypatch.setattr(keeper, "CHILD_SECONDS", 2.0)
    folder = write_run(tmp_path / "run", MadeUpRun(steps=4, state="running", done=1))
    pages = PageKeeper(folder, is_point=False, seconds=0.05)
    pages.start()
    wait_for(folder / "begun")
    write_run(folder, MadeUpRun(steps=4))
    pages.finish()
    time.sleep(0.7)
    assert "done" in last_words(folder)
    assert not list(folder.glob("*.tmp"))


def test_a_page_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep" / "point", MadeUpRun(steps=4, state="running", done=1))
    pages = PageKeeper(folder, is_point=True, seconds=0.05)
    pages.start()
    wait_for(folder.parent / "report.html")
    assert "running" in last_words(folder)
    pages.finish()


def test_a_page_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(steps=4))
    (folder / "report.html").mkdir()
    (folder / "report.html" / "file").touch()
    (folder.parent / "report.lock").mkdir()
    pages = PageKeeper(folder, is_point=True, seconds=0)
    pages.start()
    pages.finish()


FAILS_AT_FIRST = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
if not (folder / "tried").exists():
    (folder / "tried").touch()
    raise OSError("the file system does not answer")
(folder / "report.html").write_text("later")
"""


def test_after_a_page_that_failed_comes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "WRITE", FAILS_AT_FIRST)
    pages = PageKeeper(tmp_path, is_point=False, seconds=0.05)
    pages.start()
    wait_for(tmp_path / "report.html")
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("while the run goes on: OSError: the file system does not answer")
    pages.finish()
