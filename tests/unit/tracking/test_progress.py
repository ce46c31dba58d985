"""The console shows a bar to a person and lines to a log file."""

import io
import re

import pytest

from transact.tracking import console
from transact.tracking.console import Progress


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeClock:
    """Replaces `time.monotonic`; moves only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(console, "time", fake)
    return fake


def test_a_log_file_gets_a_line_an_interval_and_one_at_the_end(clock: FakeClock) -> None:
    stream = io.StringIO()
    with Progress("recover round 1/2", 500_000, interval_seconds=10, stream=stream) as progress:
        for _ in range(25):  # a second each
            clock.seconds += 1
            progress.advance(10_000, loss=3.1187)

    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "tokens=100000/500000",
        "tokens=200000/500000",
        "tokens=250000/500000",
    ]
    assert lines[0] == ("recover round 1/2  tokens=100000/500000  20%  tokens_per_s=10000  left=0:40  loss=3.119")


def test_units_of_an_earlier_attempt_do_not_count_towards_the_rate(clock: FakeClock) -> None:
    stream = io.StringIO()
    with Progress("calibrate", 100, unit="batches", stream=stream, completed=60) as progress:
        clock.seconds += 10
        progress.advance(20)
    assert stream.getvalue() == "calibrate  batches=80/100  80%  batches_per_s=2  left=0:10\n"


def test_an_exception_leaves_the_last_state(clock: FakeClock) -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress("slice", 4, unit="layers", stream=stream) as progress:
        progress.advance(1)
        raise KeyError
    assert stream.getvalue() == "slice  layers=1/4  25%  layers_per_s=0  left=?\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = FakeTerminal()
    with Progress("recover [1/2]", 1000, stream=stream) as progress:
        progress.advance(250, loss=3.12)

    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()[-1]
    assert "\x1b[" in stream.getvalue()
    assert last.startswith("recover [1/2] ━")
    assert "tokens=250/1000  25%" in last
    assert "loss=3.12" in last


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = FakeTerminal()
    with Progress("recover", 10, stream=stream) as progress:
        progress.advance(5)
    assert stream.getvalue().startswith("recover  tokens=5/10  50%")


@pytest.mark.parametrize("stream", [io.StringIO(), FakeTerminal()])
def test_other_ranks_are_silent(stream: io.StringIO) -> None:
    with Progress("recover", 10, enabled=False, stream=stream, interval_seconds=0) as progress:
        progress.advance(5, loss=1.0)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (3725.4, "1:02:05"), (360_000, "100:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert console._duration(seconds) == text
