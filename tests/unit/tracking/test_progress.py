"""A log file gets a line an interval of whatever goes on."""

from __future__ import annotations

import io

import pytest

from transact.tracking import progress as progress_module
from transact.tracking import view as view_module
from transact.tracking.progress import Progress
from transact.tracking.view import Lines, Silent, duration


class FakeClock:
    """Replaces `time.monotonic`; moves only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(view_module, "time", fake)
    monkeypatch.setattr(progress_module, "time", fake)
    return fake


def test_a_log_file_gets_a_line_an_interval_and_one_at_the_end(clock: FakeClock) -> None:
    stream = io.StringIO()
    with Progress(Lines(10, stream), "recover round 1/2", 500_000) as progress:
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
    with Progress(Lines(60, stream), "calibrate", 100, unit="batches", completed=60) as progress:
        clock.seconds += 10
        progress.advance(20)
    assert stream.getvalue() == "calibrate  batches=80/100  80%  batches_per_s=2  left=0:10\n"


def test_an_exception_leaves_the_last_state(clock: FakeClock) -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress(Lines(60, stream), "slice", 4, unit="layers") as progress:
        progress.advance(1)
        raise KeyError
    assert stream.getvalue() == "slice  layers=1/4  25%  layers_per_s=0  left=?\n"


def test_other_ranks_are_silent_and_still_count_as_alive(capfd: pytest.CaptureFixture[str]) -> None:
    signs = []
    with Progress(Silent(), "recover", 10, on_advance=lambda: signs.append(1)) as progress:
        progress.advance(5, loss=1.0)
    assert capfd.readouterr() == ("", "")
    assert signs == [1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (3725.4, "1:02:05"), (360_000, "100:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
