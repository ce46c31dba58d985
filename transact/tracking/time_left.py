"""The time left of a whole job: its stages' shares of the work, corrected by the pace of what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from transact.tracking.view import Status


class JobClock:
    """Knows how much work every stage is, and learns how long a unit of it takes.

    A stage that is still to come takes as long for each unit of work as the latest stage of its kind (the last part of
    its name) did; where there was none, as long as all finished work on average.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._work: dict[str, float] = {}
        self._seconds: dict[str, float] = {}  # of finished stages, by name
        self._not_measured: set[str] = set()
        self._running: str | None = None
        self._since = 0.0

    def plan(self, work: Mapping[str, float]) -> None:
        """The stages of the job in their order, with their work in any unit. Again, when it is known better."""
        self._work = dict(work)

    def begin(self, stage: str) -> None:
        self._running, self._since = stage, self._now()

    def finish(self, stage: str, seconds: float | None = None) -> None:
        """seconds: of a stage that an earlier attempt has finished; else since `begin`."""
        self._seconds[stage] = self._now() - self._since if seconds is None else seconds
        if self._running == stage:
            self._running = None

    def take_over(self) -> None:
        """What the running stage makes was there already: its time says nothing about others."""
        if self._running is not None:
            self._not_measured.add(self._running)

    def left(self, status: Status | None = None) -> float | None:
        """Seconds to the end of the job; None before there is a pace.

        Args:
            status: of the loop that the running stage is in, where it has one.
        """
        seconds = {name: value for name, value in self._seconds.items() if name not in self._not_measured}
        of_running = None if status is None else _seconds_of_stage(status)
        if of_running is not None and self._running is not None:
            seconds |= {self._running: of_running[0]}
        measured = {name: value for name, value in seconds.items() if self._work.get(name) and value > 0}
        if not measured:
            return None
        average = sum(measured.values()) / sum(self._work[name] for name in measured)
        paces = {_kind(name): value / self._work[name] for name, value in measured.items()}
        to_come = [name for name in self._work if name not in self._seconds and name != self._running]
        left = sum(self._work[name] * paces.get(_kind(name), average) for name in to_come)
        if self._running is None:
            return left
        if of_running is not None:
            return left + of_running[1]
        whole = self._work.get(self._running, 0.0) * paces.get(_kind(self._running), average)
        return left + max(0.0, whole - (self._now() - self._since))


def _kind(stage: str) -> str:
    return stage.rpartition("/")[2]


def _seconds_of_stage(status: Status) -> tuple[float, float] | None:
    """All seconds of the stage that a loop belongs to, and those that are left; None before the loop has a pace."""
    begin, end = status.share
    if status.per_second <= 0 or end <= begin:
        return None
    whole_loop = status.total / status.per_second
    whole = whole_loop / (end - begin)
    return whole, status.remaining / status.per_second + whole * (1 - end)
