"""The fault benchmark at small size: kill -9 at random moments, started again until the end, which is the same."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import faults
from tests.support.commands import REPOSITORY, Workplace, environment
from tests.support.warm import WarmProcess


class Started(WarmProcess):
    """As the benchmark starts a job, in processes that have their imports already."""

    def __init__(self, overrides: list[str]) -> None:
        arguments = [*overrides, "launch=local", f"launch.processes={faults.RANKS}"]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        super().__init__(arguments, cwd=REPOSITORY, environment=environment(), **streams)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:  # type: ignore[override]
        out, err = super().communicate(timeout)
        return out.encode(), err.encode()


def ranks_of(process: WarmProcess) -> dict[int, psutil.Process]:
    """By the order in which they are started: they have the command line of the process that they are forks of."""
    with suppress(psutil.NoSuchProcess):
        for controller in psutil.Process(process.pid).children():
            return dict(enumerate(sorted(controller.children(), key=lambda each: each.pid)))
    return {}


def test_a_job_that_is_killed_again_and_again_ends_like_one_that_is_not(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "start", Started)
    monkeypatch.setattr(faults, "ranks_of", ranks_of)
    steps, tokens_per_step = 16, 8 * 64
    overrides = [
        *workplace.overrides("faults"),
        "prune.rounds=1",
        "recover.objective=cross_entropy",
        f"recover.tokens={steps * tokens_per_step}",
        f"engine.checkpoint_every.tokens={4 * tokens_per_step}",
    ]
    result = faults.run_faults(overrides, kills=2, runs=1, seed=1, folder=tmp_path)
    assert result["kills"] == sum(result["by_stage"].values()) == 2
    assert result["identical"] == result["runs"]
    assert (result["lost_steps"], result["repeated_steps"], result["left_over_files"]) == (0, 0, 0)
