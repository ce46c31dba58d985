"""The fault benchmark at small size: kill -9 at random moments, started again until the end, which is the same."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults import run_faults
from tests.support.commands import Workplace


def test_a_job_that_is_killed_again_and_again_ends_like_one_that_is_not(workplace: Workplace, tmp_path: Path) -> None:
    steps, tokens_per_step = 16, 8 * 64
    overrides = [
        *workplace.overrides("faults"),
        "prune.rounds=1",
        "recover.objective=cross_entropy",
        f"recover.tokens={steps * tokens_per_step}",
        f"engine.checkpoint_every.tokens={4 * tokens_per_step}",
    ]
    result = run_faults(overrides, kills=3, runs=1, seed=1, folder=tmp_path)
    assert result["kills"] == sum(result["by_stage"].values()) == 3
    assert result["identical"] == result["runs"]
    assert (result["lost_steps"], result["repeated_steps"], result["left_over_files"]) == (0, 0, 0)
