"""Health of a recovery: losses that are not finite, loss spikes, rising validation loss and slow steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from transact.errors import Failure

WINDOW = 32  # steps that a loss is compared with
FEWEST = 8
DEVIATIONS = 8  # a spike is more than this many median absolute deviations above the median, plus
SHARE = 0.1  # this share of the median itself: the deviation of a smooth curve is close to zero


class Diverged(Failure):
    """Training has failed: too many steps in a row without a finite loss and gradient."""


class Alert(NamedTuple):
    """An event that a person should look at."""

    kind: str
    text: str


@dataclass(kw_only=True, slots=True)
class TrainingHealth:
    """Counts of skipped steps and loss spikes in one round's recovery.

    Attributes: skipped: steps whose loss or gradient was infinite or not a number, all of them and those since the
    last good one. spikes: losses far above those before. recent: the newest finite losses, in nats.
    """

    skipped: int = 0
    skipped_in_a_row: int = 0
    spikes: int = 0
    recent: list[float] = field(default_factory=list)

    def observe(self, loss: float, applied: bool) -> Alert | None:
        """Count one step and return an alert if it was skipped or its loss spiked.

        applied: whether the step changed the weights.
        """
        if not applied or not math.isfinite(loss):
            self.skipped += 1
            self.skipped_in_a_row += 1
            what = "loss" if not math.isfinite(loss) else "gradient"
            text = f"{what} infinite or not a number: step skipped ({self.skipped} so far)"
            return Alert("skipped step", text)
        self.skipped_in_a_row = 0
        usual = median(self.recent) if len(self.recent) >= FEWEST else math.inf
        deviation = median(abs(each - usual) for each in self.recent) if self.recent else 0.0
        self.recent = [*self.recent[-WINDOW + 1 :], loss]
        if loss <= usual + DEVIATIONS * deviation + SHARE * usual:
            return None
        self.spikes += 1
        return Alert("loss spike", f"loss {loss:.2f} after {usual:.2f}")


RISE = 0.02  # nats per token: two hundredths of the perplexity; less is up and down from step to step


def has_risen(best: float, now: float) -> bool:
    """Return whether a validation loss is clearly above the lowest so far, or no number. Both in nats per token."""
    return not now <= best + RISE


def rise(best: tuple[float, int], now: float, *, before: float, after: float) -> Alert:
    """Return the alert of a validation whose loss has risen.

    Args:
        best: the lowest validation perplexity so far, and its step.
        now: the validation perplexity.
        before: the learning rate at the peak of the round so far.
        after: the same for the rest of it.
    """
    told = f"perplexity {now:.2f} is above the {best[0]:.2f} of step {best[1]}"
    if after == before:
        return Alert("validation", f"{told} (peak learning rate {before:.1e}); the best weights seen are kept")
    return Alert("validation", f"{told}: back to those weights, peak learning rate {after:.1e} instead of {before:.1e}")


ALLOCATOR_RETRIES, UNUSED_GIB = "mem/allocator_retries", "mem/unused_gib"


class AllocatorWatch:
    """A comparison of a GPU's allocator with its last look: each retry frees all its cache, and waits for the GPU."""

    def __init__(self) -> None:
        self._retries: float | None = None  # the allocator counts over the life of the process

    def observe(self, figures: Mapping[str, float]) -> Alert | None:
        """Return an alert if there were retries since the last call. figures: as `memory_figures` gives them."""
        retries = figures.get(ALLOCATOR_RETRIES, 0.0)
        news, self._retries = retries - (retries if self._retries is None else self._retries), retries
        if news <= 0:
            return None
        return Alert(
            "memory",
            f"GPU memory is short: the allocator freed its cache and tried again {news:.0f} times since the last "
            f"validation, with {figures[UNUSED_GIB]:.1f} GiB reserved and unused; lower engine.micro_batch_sequences, "
            "engine.live_elements or engine.prefetch_elements",
        )


RECENT = 8  # steps whose median must be slow
FEWEST_BEFORE = 24
MOST_BEFORE = 256
SLOWER = 2.0  # times


class PaceWatch:
    """A comparison of the newest steps of this attempt with those before them, to find slow ones."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=MOST_BEFORE + RECENT)

    def observe(self, step_seconds: float) -> Alert | None:
        """Count one step and return an alert if steps have become slow.

        After an alert the new pace is the usual one, so that it is raised once.
        """
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
