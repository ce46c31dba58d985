"""What a terminal shows of a run, and that its failures stay on the screen."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from transact.tracking.live import LiveView, open_view
from transact.tracking.view import Lines, Status
from transact.tracking.view_events import ViewEvents, replay

STAGES = ["round_00/evaluate", "round_01/calibrate", "round_01/recover", "round_02/recover", "export"]
SHOWS_CURSOR = "\x1b[?25h"


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "30")


def status(completed: int = 250) -> Status:
    return Status(
        description="recover round 1/2",
        unit="tokens",
        completed=completed,
        total=1000,
        per_second=50.0,
        figures={"loss": 3.1187},
    )


def open_screen(stream: FakeTerminal) -> LiveView:
    view = open_view(60.0, "half", stream)
    assert isinstance(view, LiveView)
    return view


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def drawn(view: LiveView, width: int = 120) -> str:
    """One frame, as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        console.print(view._drawn())
    return plain(capture.get())


def test_a_frame_shows_stages_bar_loss_pace_and_time_left() -> None:
    view = open_screen(FakeTerminal())
    view.plan(STAGES)
    view.finish("round_00/evaluate")
    view.begin("round_01/recover", job_left=100.0)
    view.opened(replace(status(), job_left=75.2))
    frame = drawn(view)
    view.close()

    lines = [line.rstrip() for line in frame.splitlines()]
    assert re.fullmatch(r"half  0:0\d  about 1:1[45] left in all", lines[0])
    assert lines[1:5] == [
        "round 00 ✓ evaluate",
        "round 01 · calibrate  ▸ recover",
        "round 02 · recover",
        "· export",
    ]
    assert lines[5] == "recover round 1/2  250/1,000 tokens  25%"
    assert "━" in lines[6]
    assert lines[7] == "50 tokens/s  0:15 left"  # 750 tokens at 50 a second
    assert lines[8] == "loss 3.119"


def test_it_fits_a_narrow_terminal() -> None:
    view = open_screen(FakeTerminal())
    view.plan(STAGES)
    view.begin("round_01/recover")
    view.opened(status())
    frame = drawn(view, width=40)
    view.close()
    assert max(map(len, frame.splitlines())) <= 40
    assert "25%" in frame


def test_messages_stay_and_the_terminal_is_given_back() -> None:
    stream = FakeTerminal()
    view = open_screen(stream)
    view.say("round_00/evaluate: already finished [dim]")
    view.close()
    view.close()
    assert "round_00/evaluate: already finished [dim]" in plain(stream.getvalue())
    assert SHOWS_CURSOR in stream.getvalue()


def test_a_long_path_stays_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be copied, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "40")
    stream = FakeTerminal()
    view = open_screen(stream)
    message = f"exported model: /{'a_long_folder/' * 8}export"
    view.say(message)
    view.close()
    assert message in plain(stream.getvalue())


def test_a_screen_that_fails_leaves_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = FakeTerminal()
    view = open_screen(stream)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setattr(view._console, "print", fail)
    view.say("calibrated")
    view.opened(status())
    view.closed(status(1000))
    assert capsys.readouterr().out == "calibrated\n"
    assert plain(stream.getvalue()).endswith(status(1000).line() + "\n")


def test_a_frame_that_cannot_be_drawn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_screen(FakeTerminal())
    monkeypatch.setattr(view, "_draw", lambda: 1 / 0)
    assert "half (no picture: ZeroDivisionError)" in drawn(view)
    view.close()


def test_a_log_file_and_a_dumb_terminal_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_view(60.0, "half", io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(60.0, "half", FakeTerminal()), Lines)


def test_the_launcher_shows_what_rank_0_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    rank = ViewEvents(0.0, path)
    rank.plan(STAGES)
    rank.begin("round_01/recover")
    rank.opened(status(0))
    rank.advanced(status())
    assert capfd.readouterr().err == f"round_01/recover  stage=3/5\n{status().line()}\n"  # its log has lines

    view = open_screen(FakeTerminal())
    for line in path.read_text().splitlines():
        replay(view, line)
    replay(view, '{"event": "adv')  # not whole yet
    assert "▸ recover" in drawn(view)
    assert "250/1,000 tokens" in drawn(view)
    view.close()


def test_events_that_cannot_be_written_are_let_be() -> None:
    ViewEvents(60.0, Path(os.devnull) / "nowhere").begin("round_01/recover")
