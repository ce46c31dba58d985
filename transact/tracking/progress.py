"""The progress of a loop, and the time left of the whole job."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

from transact.rounds import Stage
from transact.tracking.view import Status, View


class Progress:
    """The progress of a loop, shown on a view.

        with Progress(view, "recover round 1/2", total=500_000) as progress:
            progress.advance(4096, loss=3.12)

    Args:
        view: shows the progress.
        description: what is going on.
        total: units to do, `completed` included.
        unit: the plural name of what is counted.
        completed: units an earlier attempt has done; they do not count towards the rate.
        on_advance: called with every advance, whether it is shown or not.
        job_left: returns the seconds to the end of the job, given the status of the loop.
    """

    def __init__(
        self,
        view: View,
        description: str,
        total: int,
        unit: str = "tokens",
        completed: int = 0,
        on_advance: Callable[[], None] | None = None,
        job_left: Callable[[Status], float | None] = lambda status: None,
    ) -> None:
        self._view = view
        self._description, self._total, self._unit = description, total, unit
        self._first = self._completed = completed
        self._figures: dict[str, float | str] = {}
        self._started = time.monotonic()
        self._on_advance = on_advance
        self._job_left = job_left

    def advance(self, amount: int, **figures: float | str) -> None:
        """Count `amount` more units, up to the total: the last piece may be smaller than the others.

        Each figure is shown until a newer one of its name.
        """
        self._completed = min(self._completed + amount, max(self._total, self._completed))
        self._figures.update(figures)
        if self._on_advance is not None:
            self._on_advance()
        self._view.advanced(self._status())

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._view.opened(self._status())
        return self

    def __exit__(self, *exception: object) -> None:
        self._view.closed(self._status())

    def _status(self) -> Status:
        elapsed = time.monotonic() - self._started
        status = Status(
            description=self._description,
            unit=self._unit,
            completed=self._completed,
            total=self._total,
            per_second=(self._completed - self._first) / elapsed if elapsed > 0 else 0.0,
            figures=dict(self._figures),
        )
        return replace(status, job_left=self._job_left(status))


class JobClock:
    """The clock of a job, which knows the work of every stage and learns how long a unit of work takes.

    A stage that is still to come takes as long for each unit of work as the latest stage of its kind did; where there
    was none, as long as all finished work on average.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._work: dict[Stage, float] = {}
        self._seconds: dict[Stage, float] = {}  # of finished stages
        self._not_measured: set[Stage] = set()
        self._running: Stage | None = None
        self._since = 0.0

    def expect(self, work: Mapping[Stage, float]) -> None:
        """Set the stages of the job in their order, with their work in any unit. Call again when it is known better."""
        self._work = dict(work)

    def begin(self, stage: Stage) -> None:
        self._running, self._since = stage, self._now()

    def go_on(self, seconds: float) -> None:
        """Count what earlier attempts took for the part of the running stage that is not done again."""
        self._since -= seconds

    def elapsed(self) -> float:
        """Return the seconds of the running stage, with those of earlier attempts."""
        return self._now() - self._since

    def finish(self, stage: Stage, seconds: float | None = None) -> None:
        """Record that a stage is finished.

        Args:
            seconds: its duration, if an earlier attempt finished it; `elapsed` by default.
        """
        self._seconds[stage] = self.elapsed() if seconds is None else seconds
        if self._running == stage:
            self._running = None

    def take_over(self) -> None:
        """Exclude the running stage from the pace: its output existed, so its time says nothing about others."""
        if self._running is not None:
            self._not_measured.add(self._running)

    def left(self, status: Status | None = None, share: tuple[float, float] = (0.0, 1.0)) -> float | None:
        """Return the seconds to the end of the job, or None before there is a pace.

        Args:
            status: that of the loop that the running stage is in, if it has one.
            share: begin and end of the part of the stage's work that the loop covers, from 0 to 1.
        """
        seconds = {stage: value for stage, value in self._seconds.items() if stage not in self._not_measured}
        of_running = None if status is None else _seconds_of_stage(status, share)
        if of_running is not None and self._running is not None:
            seconds |= {self._running: of_running[0]}
        measured = {stage: value for stage, value in seconds.items() if self._work.get(stage) and value > 0}
        if not measured:
            return None
        average = sum(measured.values()) / sum(self._work[stage] for stage in measured)
        paces = {stage.kind: value / self._work[stage] for stage, value in measured.items()}
        to_come = [stage for stage in self._work if stage not in self._seconds and stage != self._running]
        left = sum(self._work[stage] * paces.get(stage.kind, average) for stage in to_come)
        if self._running is None:
            return left
        if of_running is not None:
            return left + of_running[1]
        whole = self._work.get(self._running, 0.0) * paces.get(self._running.kind, average)
        return left + max(0.0, whole - self.elapsed())


def _seconds_of_stage(status: Status, share: tuple[float, float]) -> tuple[float, float] | None:
    """Return all seconds of a loop's stage and those that are left, or None before the loop has a pace."""
    begin, end = share
    if status.per_second <= 0 or end <= begin:
        return None
    whole_loop = status.total / status.per_second
    whole = whole_loop / (end - begin)
    return whole, status.remaining / status.per_second + whole * (1 - end)
