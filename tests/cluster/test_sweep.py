"""A sweep on a real SLURM: one job a point, what they share computed once, submitted again without doubling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cluster_jobs import SECONDS, overrides, seconds_of, status, transact
from tests.support.commands import Workplace
from tests.support.runs import assert_same_export
from tests.support.slurm import Slurm, wait_for
from tests.support.wandb_files import records
from transact.files import read_json

SHARED_STAGES = ("round_00/evaluate", "round_01/calibrate", "round_01/gram")


def point(sweep: Path, fraction: str) -> Path:
    return sweep / f"prune.remove_fraction={fraction}"


def arguments(workplace: Workplace, name: str, fractions: str) -> list[str]:
    kept = [each for each in overrides(workplace, name) if not each.startswith("prune.remove_fraction")]
    short = ["recover.tokens=4096", "launch.nodes=1", "track.mode=offline"]
    return ["-m", *kept, f"prune.remove_fraction={fractions}", *short]


def test_points_share_their_beginning_and_are_not_submitted_twice(slurm: Slurm, workplace: Workplace) -> None:
    """One point at a time, so that nobody's seconds are spent waiting for another's result."""
    request, sweep = arguments(workplace, "cluster_sweep", "0.3,0.4"), workplace.folder / "cluster_sweep"
    first = transact(slurm, [*request, "launch.max_running=1"])
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("submitted: job ") == 2
    jobs = slurm.jobs()
    assert len(jobs) == 2

    again = transact(slurm, [*request, "launch.max_running=1"])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is at it already") == 2
    assert slurm.jobs() == jobs
    assert len(slurm.run("squeue", "-h", "-t", "running", "-o", "%i").split()) <= 1
    assert slurm.run("squeue", "-h", "-t", "pending", "-o", "%E").count("afterany:") == 1

    for job in jobs:
        assert slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", seconds=SECONDS) == "COMPLETED"
    earlier, later = point(sweep, "0.3"), point(sweep, "0.4")
    assert seconds_of(later, *SHARED_STAGES) < 0.5 * seconds_of(earlier, *SHARED_STAGES)
    assert read_json(earlier / "round_00" / "evaluation.json") == read_json(later / "round_00" / "evaluation.json")
    assert [path for path in (sweep / "shared").glob("gram-*") if path.is_dir()] == []  # large, and of no use any more
    assert "done" in status(slurm, sweep) and str(later.name) in status(slurm, sweep)

    third = transact(slurm, request)
    assert third.returncode == 0, third.stderr
    assert third.stdout.count("finished already") == 2
    assert not slurm.jobs()
    groups = [records(next((each / "wandb").glob("offline-run-*")), "run")[0] for each in sweep.glob("prune*")]
    assert {json.dumps(group.get("run_group")) for group in groups} == {json.dumps("cluster_sweep")}

    more = transact(slurm, [*request, "export.gguf=f16"])
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("submitted: job ") == 2, "more may be asked of finished points"
    for job in slurm.jobs():
        assert slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", seconds=SECONDS) == "COMPLETED"
    assert all(list((each / "gguf").glob("*.gguf")) for each in (earlier, later))


@pytest.mark.gauntlet
def test_points_that_start_together_compute_once_and_end_like_one_alone(slurm: Slurm, workplace: Workplace) -> None:
    """The point that computes is killed at it: another goes on, and it takes over when it comes back."""
    alone = transact(slurm, [*arguments(workplace, "cluster_alone", "0.4")[1:], "launch.wait=true"])
    assert alone.returncode == 0, alone.stdout + alone.stderr
    sweep = workplace.folder / "cluster_together"
    started = transact(slurm, arguments(workplace, "cluster_together", "0.3,0.4"))
    assert started.returncode == 0, started.stderr
    wait_for(lambda: list((sweep / "shared").glob("statistics-*.lock")), SECONDS, "a point calibrates")
    jobs = {fraction: read_json(point(sweep, fraction) / "job.json")["job"] for fraction in ("0.3", "0.4")}
    slurm.run("scontrol", "requeue", jobs["0.4"])
    wait_for(lambda: not slurm.jobs(), 2 * SECONDS, "both points end")
    for fraction in jobs:
        assert read_json(point(sweep, fraction) / "run.json")["state"] == "done"
    assert len(list((sweep / "shared").glob("evaluation-*.lock"))) == 1
    assert_same_export(point(sweep, "0.4"), workplace.folder / "cluster_alone")
