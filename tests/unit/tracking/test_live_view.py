"""What a terminal shows of a run, and that its failures stay on the screen."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from transact.rounds import Stage
from transact.tracking.live import LiveView, open_view
from transact.tracking.view import Lines, Status, ViewEvents, replay

STAGES = [Stage("evaluate", 0), Stage("calibrate", 1), Stage("recover", 1), Stage("recover", 2), Stage("export")]
SHOWS_CURSOR, ERASES_LINE = "\x1b[?25h", "\x1b[2K"


class FakeTerminal(io.StringIO):
    """refuses: a text that it fails to show, as one that is gone does."""

    encoding = "utf-8"
    refuses = "\0"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.refuses in text:
            raise OSError("the terminal is gone")
        return super().write(text)


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


def last_frame(view: LiveView, stream: FakeTerminal) -> str:
    """What stood there when the view was closed, as text."""
    view.close()
    frames = [plain(each) for each in stream.getvalue().split(ERASES_LINE)]
    return next(each for each in reversed(frames) if each.strip())


def test_a_frame_shows_stages_bar_loss_pace_and_time_left() -> None:
    stream = FakeTerminal()
    view = open_screen(stream)
    view.expect(STAGES)
    view.finish(Stage("evaluate", 0))
    view.begin(Stage("recover", 1), job_left=100.0)
    view.opened(replace(status(), job_left=75.2))

    lines = [line.rstrip() for line in last_frame(view, stream).splitlines()]
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


def test_it_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = FakeTerminal()
    view = open_screen(stream)
    view.expect(STAGES)
    view.begin(Stage("recover", 1))
    view.opened(status())
    frame = last_frame(view, stream)
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


def test_a_screen_that_fails_leaves_lines(capsys: pytest.CaptureFixture[str]) -> None:
    stream = FakeTerminal()
    view = open_screen(stream)
    stream.refuses = "calibrated"
    view.say("calibrated")
    view.opened(status())
    view.closed(status(1000))
    assert capsys.readouterr().out == "calibrated\n"
    assert plain(stream.getvalue()).endswith(status(1000).line() + "\n")


def test_a_frame_that_cannot_be_drawn_says_so() -> None:
    stream = FakeTerminal()
    view = open_screen(stream)
    view.opened(replace(status(), figures={"loss": None}))  # type: ignore[dict-item]
    assert "half (no picture: TypeError: " in last_frame(view, stream)


def test_a_log_file_and_a_dumb_terminal_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_view(60.0, "half", io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(60.0, "half", FakeTerminal()), Lines)


def test_the_launcher_shows_what_rank_0_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    rank = ViewEvents(0.0, path)
    rank.expect(STAGES)
    rank.begin(Stage("recover", 1))
    rank.opened(status(0))
    rank.advanced(status())
    assert capfd.readouterr().err == f"round_01/recover  stage=3/5\n{status().line()}\n"  # its log has lines

    stream = FakeTerminal()
    view = open_screen(stream)
    for line in path.read_text().splitlines():
        replay(view, line)
    replay(view, '{"event": "adv')  # not whole yet
    frame = last_frame(view, stream)
    assert "▸ recover" in frame
    assert "250/1,000 tokens" in frame


def test_events_that_cannot_be_written_are_let_be() -> None:
    ViewEvents(60.0, Path(os.devnull) / "nowhere").begin(Stage("recover", 1))
