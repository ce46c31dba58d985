"""The time left of a whole job, against a clock that the test turns."""

from __future__ import annotations

import pytest

from transact.rounds import Stage
from transact.tracking.progress import JobClock
from transact.tracking.view import Status

WORK = {Stage("recover", 1): 100.0, Stage("evaluate", 1): 10.0, Stage("recover", 2): 50.0, Stage("export"): 5.0}


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def status(completed: int, per_second: float) -> Status:
    return Status(description="", unit="tokens", completed=completed, total=100, per_second=per_second, figures={})


def started() -> tuple[Time, JobClock]:
    time = Time()
    clock = JobClock(time)
    clock.expect(WORK)
    return time, clock


def test_nothing_is_foretold_before_there_is_a_pace() -> None:
    _, clock = started()
    clock.begin(Stage("recover", 1))
    assert clock.left() is None
    assert clock.left(status(0, 0.0)) is None


def test_the_loop_at_work_tells_the_pace_of_all_that_follows() -> None:
    """A quarter done at one unit a second: 75 seconds of this stage, and 65 units more at one second each."""
    _, clock = started()
    clock.begin(Stage("recover", 1))
    assert clock.left(status(25, 1.0)) == pytest.approx(75 + 65)


def test_what_an_earlier_attempt_took_of_a_stage_counts() -> None:
    time, clock = started()
    clock.begin(Stage("recover", 1))
    clock.go_on(150.0)
    time.now += 50
    assert clock.elapsed() == 200
    clock.finish(Stage("recover", 1))
    assert clock.left() == pytest.approx(2 * 65)  # 200 seconds for 100 units


def test_a_kind_of_stage_that_is_slower_than_its_share_is_so_again() -> None:
    time, clock = started()
    clock.begin(Stage("recover", 1))
    time.now += 300  # 3 seconds a unit
    clock.finish(Stage("recover", 1))
    clock.begin(Stage("evaluate", 1))
    time.now += 5  # half a second a unit
    clock.finish(Stage("evaluate", 1))
    # The next recovery at its own kind's pace; the export, whose kind is new, at that of all: 305 s for 110 units.
    assert clock.left() == pytest.approx(50 * 3 + 5 * 305 / 110)
    clock.begin(Stage("recover", 2))
    time.now += 30
    assert clock.left() == pytest.approx(50 * 3 - 30 + 5 * 305 / 110)


def test_what_an_earlier_attempt_finished_counts_with_its_seconds() -> None:
    _, clock = started()
    clock.finish(Stage("recover", 1), 200.0)
    clock.finish(Stage("evaluate", 1), 20.0)
    assert clock.left() == pytest.approx(55 * 2)


def test_a_loop_that_is_a_part_of_its_stage() -> None:
    """The second of four: half of it, and two more as long."""
    _, clock = started()
    clock.begin(Stage("evaluate", 1))
    left = clock.left(status(50, 10.0), share=(0.25, 0.5))
    assert left == pytest.approx(5 + 20 + (100 + 50 + 5) * 40 / 10)


def test_what_was_taken_over_says_nothing_about_the_pace() -> None:
    time, clock = started()
    clock.begin(Stage("recover", 1))
    time.now += 100
    clock.finish(Stage("recover", 1))
    clock.begin(Stage("evaluate", 1))
    clock.take_over()
    time.now += 0.01
    clock.finish(Stage("evaluate", 1))
    assert clock.left() == pytest.approx(55)
