"""How far a loop has come."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from transact.tracking.view import Status, View


class Progress:
    """Tells a view how far a loop has come.

        with Progress(view, "recover round 1/2", total=500_000) as progress:
            progress.advance(4096, loss=3.12)

    Args:
        view: where it is shown.
        description: what is going on.
        total: units to do, `completed` included.
        unit: the plural name of what is counted.
        completed: units an earlier attempt has done; they do not count towards the rate.
        on_advance: called with every advance, whether it is shown or not.
        share: of the stage's work that the loop covers: from where to where, of 1.
        job_left: seconds to the end of the job, from what is known of the loop.
    """

    def __init__(
        self,
        view: View,
        description: str,
        total: int,
        unit: str = "tokens",
        completed: int = 0,
        on_advance: Callable[[], None] | None = None,
        share: tuple[float, float] = (0.0, 1.0),
        job_left: Callable[[Status], float | None] = lambda status: None,
    ) -> None:
        self._view = view
        self._description, self._total, self._unit = description, total, unit
        self._first = self._completed = completed
        self._figures: dict[str, float | str] = {}
        self._started = time.monotonic()
        self._on_advance = on_advance
        self._share, self._job_left = share, job_left

    def advance(self, amount: int, **figures: float | str) -> None:
        """Counts `amount` more units, up to the total: the last piece may be smaller than the others. Each figure is
        shown until a newer one of its name."""
        self._completed = min(self._completed + amount, max(self._total, self._completed))
        self._figures.update(figures)
        if self._on_advance is not None:
            self._on_advance()
        self._view.advanced(self._status())

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._view.opened(self._status())
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
            share=self._share,
        )
        return replace(status, job_left=self._job_left(status))
