"""Whether training has become slow: a node that throttles, a file system that is busy. Plain arithmetic."""

from __future__ import annotations

from collections import deque
from statistics import median

from transact.stages.recover.health import Alert

RECENT = 8  # steps, of which the median must be slow
FEWEST_BEFORE = 24
MOST_BEFORE = 256
SLOWER = 2.0  # times


class PaceWatch:
    """Compares the newest steps of this attempt with those before them."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=MOST_BEFORE + RECENT)

    def observe(self, step_seconds: float) -> Alert | None:
        """Count one step. After an alert the new pace is the usual one: it is told once."""
        self._seconds.append(step_seconds)
        if len(self._seconds) < FEWEST_BEFORE + RECENT:
            return None
        times = list(self._seconds)
        recent, usual = median(times[-RECENT:]), median(times[:-RECENT])
        if recent <= SLOWER * usual:
            return None
        self._seconds.clear()
        return Alert(
            "slow", f"a step takes {recent:.2f} s, it took {usual:.2f} s: throughput fell to {usual / recent:.0%}"
        )
