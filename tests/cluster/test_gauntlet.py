"""Everything that a cluster does to a job, one after another: it ends with the weights of a job left in peace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster_jobs import SECONDS, TOKENS_PER_STEP, Submitted, cluster_environment, overrides, submit
from tests.support.commands import REPOSITORY, Workplace
from tests.support.runs import assert_same_export, recovery_steps
from tests.support.slurm import Slurm, wait_for

pytestmark = pytest.mark.gauntlet

STEPS = 480  # no machine should be done before the last event
LONG = [f"recover.tokens={STEPS * TOKENS_PER_STEP}", f"engine.checkpoint_every.tokens={10 * TOKENS_PER_STEP}"]


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, workplace: Workplace) -> Path:
    run = submit(slurm, workplace, "gauntlet_undisturbed", *LONG)
    run.wait_until_over(seconds=2 * SECONDS)
    return run.folder


def preempt(run: Submitted) -> None:
    """A job of a higher partition wants all nodes for a moment."""
    run.slurm.run("sbatch", "-p", "high", "--exclusive", "-N2", "-t1", "-o", "/dev/null", "--wrap", "sleep 3")


def lose_node(number: int) -> Callable[[Submitted], None]:
    def lose(run: Submitted) -> None:
        node, before = run.slurm.nodes[number], run.slurm.restarts(run.job)
        run.slurm.kill_node(node)
        wait_for(lambda: run.slurm.restarts(run.job) > before, SECONDS, f"the job is queued again without {node}")
        run.slurm.start_node(node)

    return lose


def test_killed_preempted_warned_and_without_nodes_it_ends_the_same(
    slurm: Slurm, workplace: Workplace, undisturbed: Path
) -> None:
    run = submit(slurm, workplace, "gauntlet", *LONG, "track.mode=offline", "launch.max_failures=3")
    events: list[tuple[Callable[[Submitted], object], set[tuple[int, int, int]]]] = [
        (lambda run: run.kill_rank(0), {(0, 0, 1)}),
        (lambda run: run.kill_rank(1), {(0, 0, 2)}),
        (lambda run: slurm.run("scontrol", "requeue", run.job), {(0, 1, 2)}),
        (preempt, {(0, 2, 2)}),
        (lambda run: slurm.run("scancel", "--signal=USR2", run.job), {(0, 3, 2)}),  # long before the time limit
        (lose_node(0), {(0, 4, 2)}),  # that of the batch script: SLURM itself queues the job again
        (lose_node(1), {(0, 5, 2), (0, 4, 3)}),  # the other: SLURM, or the batch script when rank 0 has given up
    ]
    for attempt, (event, expected) in enumerate(events):
        run.wait_until_training(14, attempt)
        event(run)
        run.wait_until_training(1, attempt + 1)
        assert run.counts() in expected, f"event {attempt}: {run.record['interruptions']}"
    run.wait_until_over(seconds=2 * SECONDS)
    assert run.record["state"] == "done"
    assert recovery_steps(run.folder) == list(range(1, STEPS + 1))
    assert_same_export(run.folder, undisturbed)
    assert not list(run.folder.rglob("*.tmp"))
    attempts = [path.name for path in (run.folder / "wandb").glob("offline-run-*")]
    assert len(attempts) > len(events)
    assert all(name.endswith(run.record["run_id"]) for name in attempts)  # one run to W&B


def test_time_limit(slurm: Slurm, workplace: Workplace, undisturbed: Path) -> None:
    """The real one, of two minutes, in the middle of training, which no machine finishes in that time."""
    short = ["launch.timeout_minutes=2", "launch.signal_delay_seconds=50", "engine.checkpoint_every.tokens=null"]
    run = submit(slurm, workplace, "gauntlet_limit", *LONG, *short, f"recover.tokens={100 * STEPS * TOKENS_PER_STEP}")
    run.wait_until_training(1, attempt=1)
    assert run.counts() == (1, 0, 0)
    assert "saved after step" in run.log()
    slurm.run("scancel", run.job)
    run.wait_until_over("CANCELLED")
    assert run.counts() == (1, 0, 0)


@pytest.mark.parametrize(
    ("limit", "signal", "reason"),
    [
        ("launch.max_failures=0", None, "rank 1 died in round_01/recover"),
        ("launch.max_preemptions=0", "TERM", "asked to leave (SIGTERM) (preemptions: 1, launch.max_preemptions=0"),
    ],
)
def test_after_the_last_one_allowed_the_job_has_failed_with_the_reason(
    slurm: Slurm, workplace: Workplace, limit: str, signal: str | None, reason: str
) -> None:
    run = submit(slurm, workplace, f"gauntlet_{limit.partition('=')[0]}", *LONG, limit)
    run.wait_until_training(1, attempt=0)
    if signal is None:
        run.kill_rank(1)
    else:
        slurm.run("scancel", f"--signal={signal}", run.job)
    run.wait_until_over("FAILED")
    assert slurm.restarts(run.job) == 0
    assert run.record["state"] == "failed"
    assert reason in run.record["error"]


def test_torchrun_inside_srun(slurm: Slurm, workplace: Workplace, undisturbed: Path, tmp_path: Path) -> None:
    arguments = [each for each in [*overrides(workplace, "cluster_torchrun"), *LONG] if not each.startswith("launch")]
    launcher = f"srun {sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d"
    command = (
        f"{launcher} --rdzv-endpoint=127.0.0.2:29511 --rdzv-id=$SLURM_JOB_ID -m transact.run {' '.join(arguments)}"
    )
    job = slurm.run(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=1",
        f"--output={tmp_path}/log",
        f"--wrap={command}",
        cwd=REPOSITORY,
        shell=cluster_environment(slurm),
    )
    slurm.wait_for_state(job, "COMPLETED", "FAILED", seconds=2 * SECONDS)
    assert slurm.job_state(job) == "COMPLETED", (tmp_path / "log").read_text()[-3000:]
    assert_same_export(workplace.folder / "cluster_torchrun", undisturbed)


def test_asked_to_leave_before_the_ranks_have_met(slurm: Slurm, workplace: Workplace) -> None:
    """No failure, although nothing could be saved or written down yet."""
    run = submit(slurm, workplace, "gauntlet_early", *LONG, "launch.max_failures=0")
    wait_for(lambda: len(slurm.ranks_of(run.job)) == 2, SECONDS, "both ranks start")
    slurm.run("scancel", "--signal=TERM", run.job)
    wait_for(lambda: slurm.restarts(run.job) == 1, SECONDS, "the job is queued again")
    assert run.counts() == (0, 1, 0)
    slurm.run("scancel", run.job)
    run.wait_until_over("CANCELLED")
