"""When training counts as slow."""

from __future__ import annotations

from transact.stages.recover.health import FEWEST_BEFORE, RECENT, PaceWatch


def test_half_of_the_usual_pace_is_told_once() -> None:
    watch = PaceWatch()
    assert not any(watch.observe(1.0) for _ in range(FEWEST_BEFORE))
    told = [alert for _ in range(RECENT + 20) if (alert := watch.observe(2.5))]
    assert told == [("slow", "a step takes 2.50 s, it took 1.00 s: throughput fell to 40%")]


def test_single_slow_steps_and_a_slow_start_are_usual() -> None:
    watch = PaceWatch()
    times = [9.0, 5.0] + [1.0 if step % 10 else 30.0 for step in range(100)]
    assert not any(watch.observe(seconds) for seconds in times)
