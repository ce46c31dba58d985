"""When a step is counted as skipped, and when a loss counts as a spike."""

from __future__ import annotations

import math

import pytest

from transact.stages.recover.health import FEWEST, WINDOW, AllocatorWatch, TrainingHealth
from transact.stages.recover.performance import allocator_figures


def test_a_falling_curve_is_healthy() -> None:
    health = TrainingHealth()
    assert all(health.observe(8 * 0.97**step + 1, applied=True) is None for step in range(100))
    assert (health.skipped, health.spikes) == (0, 0)
    assert len(health.recent) == WINDOW


def test_a_jump_is_a_spike_and_what_follows_is_compared_with_the_usual() -> None:
    health = TrainingHealth(recent=[3.0, 3.1, 2.9, 3.0, 3.1, 2.9, 3.0, 3.0])
    assert health.observe(3.4, applied=True) is None  # median 3.0, deviation 0.05: up to 3.0 + 0.4 + 0.3 is usual
    assert health.observe(5.0, applied=True) == ("loss spike", "loss 5.00 after 3.00")
    assert health.observe(3.0, applied=True) is None
    assert health.spikes == 1


def test_the_first_steps_are_compared_with_nothing() -> None:
    health = TrainingHealth()
    for loss in (9.0, 1.0, 20.0, 2.0, 30.0, 4.0, 3.0):
        assert health.observe(loss, applied=True) is None
    assert len(health.recent) == FEWEST - 1


@pytest.mark.parametrize(
    ("loss", "applied", "what"), [(math.nan, True, "loss"), (math.inf, False, "loss"), (3.0, False, "gradient")]
)
def test_steps_without_effect_are_counted_in_all_and_in_a_row(loss: float, applied: bool, what: str) -> None:
    health = TrainingHealth()
    health.observe(loss, applied)
    told = health.observe(loss, applied)
    assert told == ("skipped step", f"{what} infinite or not a number: step skipped (2 so far)")
    assert (health.skipped, health.skipped_in_a_row) == (2, 2)
    health.observe(3.0, applied=True)
    health.observe(loss, applied)
    assert (health.skipped, health.skipped_in_a_row) == (3, 1)
    assert health.recent == [3.0]


def test_retries_of_the_allocator_are_told_once() -> None:
    """From `torch.cuda.memory_stats`, whose counters grow through the life of a process."""
    watch, told = AllocatorWatch(), []
    for retries in (0, 0, 3, 3, 5):
        stats = {
            "num_alloc_retries": retries,
            "reserved_bytes.all.current": 70 * 1024**3,
            "allocated_bytes.all.current": 66 * 1024**3,
        }
        alert = watch.observe({"mem/host_peak_gib": 1.0} | allocator_figures(stats))
        told.append(alert and (alert.kind, alert.text.partition(" times")[0][-1], "4.0 GiB" in alert.text))
    assert told == [None, None, ("memory", "3", True), None, ("memory", "2", True)]


def test_a_machine_without_gpus_has_no_allocator_to_watch() -> None:
    assert AllocatorWatch().observe({"mem/host_peak_gib": 1.0}) is None
