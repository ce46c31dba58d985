"""When a checkpoint is due."""

from __future__ import annotations

import pytest

from transact.config.machines import CheckpointEveryConfig
from transact.stages.recover import checkpoints as recovery_checkpoints
from transact.stages.recover.checkpoints import CheckpointClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(recovery_checkpoints.time, "monotonic", lambda: seconds[0])
    return seconds


def test_tokens_are_counted_from_the_last_checkpoint(now: list[float]) -> None:
    clock = CheckpointClock(CheckpointEveryConfig(minutes=None, tokens=100))
    assert [clock.is_due(40) for _ in range(3)] == [False, False, True]
    clock.restart(save_seconds=1.0)
    assert [clock.is_due(40) for _ in range(3)] == [False, False, True]


def test_slow_saves_stretch_the_minutes(now: list[float]) -> None:
    """A save of 2 minutes may come after 38 minutes of work: 2 of 40 are a twentieth. A fast one changes nothing."""
    clock = CheckpointClock(CheckpointEveryConfig(minutes=20.0))
    now[0] = 20 * 60.0
    assert clock.is_due(1)
    clock.restart(save_seconds=2 * 60.0)
    now[0] += 37 * 60.0
    assert not clock.is_due(1)
    now[0] += 1 * 60.0
    assert clock.is_due(1)
    clock.restart(save_seconds=10.0)
    now[0] += 20 * 60.0
    assert clock.is_due(1)
