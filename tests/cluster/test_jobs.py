"""Jobs on a real SLURM of two nodes: submitted by one command, by sbatch, warned of their time limit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.cluster_jobs import (
    SECONDS,
    TOKENS_PER_STEP,
    Submitted,
    cluster_environment,
    overrides,
    status,
    submit,
    transact,
    transact_as_users_do,
)
from tests.support.commands import REPOSITORY, Workplace
from tests.support.runs import assert_same_export, recovery_steps
from tests.support.slurm import Slurm, wait_for
from transact.files import read_json

STEPS = 120  # a quick machine needs some seconds for them, in which there is something to be done
LONG = f"recover.tokens={STEPS * TOKENS_PER_STEP}"


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, workplace: Workplace) -> Path:
    """One command, followed to its end."""
    done = transact_as_users_do(slurm, [*overrides(workplace, "cluster_undisturbed"), LONG, "launch.wait=true"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = workplace.folder / "cluster_undisturbed"
    for expected in (
        "submitted: job ",
        f"folder  {folder}\n",
        "follow  tail -F ",
        "cancel  scancel ",
        "exported model: ",
    ):
        assert expected in done.stdout
    assert done.stderr == ""
    return folder


def test_one_command_runs_a_copy_of_the_code_on_two_nodes(undisturbed: Path) -> None:
    record = read_json(undisturbed / "run.json")
    assert record["state"] == "done"
    assert record["world_size"] == 2
    assert record["restarts"] == 0
    job = read_json(undisturbed / "job.json")
    worker = Path("transact", "launch", "worker.py")
    assert (Path(job["code"]) / worker).read_bytes() == (REPOSITORY / worker).read_bytes()
    assert f"export PYTHONPATH={job['code']}" in next((undisturbed / "logs").glob("*.sh")).read_text()


def test_warned_of_the_time_limit_it_saves_is_queued_again_and_ends_the_same(
    slurm: Slurm, workplace: Workplace, undisturbed: Path
) -> None:
    """No checkpoint but the one that the signal asks for; while the job lives, nobody else may have its folder.

    The limit is far away until the job trains, and again before it is started anew: it is warned once, however slow the
    machine is. The signal does not wait for SLURM, which looks at limits twice a minute, when a quick one is done.
    """
    limit = ["launch.timeout_minutes=60", "launch.signal_delay_seconds=300"]
    run = submit(slurm, workplace, "cluster_warned", LONG, "engine.checkpoint_every.minutes=null", *limit)
    again = transact(slurm, [*overrides(workplace, "cluster_warned"), LONG])
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert f"has a live job already ({run.job})" in again.stderr
    run.wait_until_training(5, attempt=0)
    shown = status(slurm, run.folder)
    assert (
        " ".join(shown.split()).partition("restarts job ")[2].startswith("cluster_warned running round_01/recover 1 ")
    )
    assert f"/{STEPS * TOKENS_PER_STEP:,} " in shown
    assert f"{run.job} RUNNING" in shown
    with slurm.drained():
        slurm.run("scontrol", "update", f"JobId={run.job}", "EndTime=now+4minutes")
        slurm.run("scancel", "--signal=USR2", run.job)
        wait_for(lambda: slurm.restarts(run.job) == 1, SECONDS, "the job is queued again")
        slurm.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    run.wait_until_over()
    assert slurm.restarts(run.job) == 1
    assert run.counts() == (1, 0, 0)
    assert "goes on from checkpoint" in run.log()
    assert recovery_steps(run.folder) == list(range(1, STEPS + 1))
    assert_same_export(run.folder, undisturbed)


def test_bare_sbatch_and_srun_end_the_same(
    slurm: Slurm, workplace: Workplace, undisturbed: Path, tmp_path: Path
) -> None:
    """The file of launch/, with the lines changed that its user must look at."""
    arguments = [
        each for each in [*overrides(workplace, "cluster_bare"), LONG] if not each.startswith(("launch", "name="))
    ]
    text = (REPOSITORY / "launch" / "many_nodes.sbatch").read_text()
    for theirs, ours in (("--ntasks-per-node=8", "--ntasks-per-node=1"), ("--cpus-per-task=12", "--cpus-per-task=1")):
        assert theirs in text
        text = text.replace(theirs, ours)
    script = tmp_path / "edited.sbatch"
    script.write_text(text.replace("#SBATCH --gpus-per-node=8\n", ""))
    shell = cluster_environment(slurm) | {"OUTPUTS": str(workplace.folder), "PYTHON": sys.executable}
    command = ["sbatch", "--parsable", f"--output={tmp_path}/log", str(script), "cluster_bare", *arguments]
    run = Submitted(slurm, workplace.folder / "cluster_bare", slurm.run(*command, cwd=REPOSITORY, shell=shell), "")
    slurm.wait_for_state(run.job, "COMPLETED", "FAILED", seconds=SECONDS)
    assert slurm.job_state(run.job) == "COMPLETED", (tmp_path / "log").read_text()[-3000:]
    assert run.record["world_size"] == 2
    assert run.counts() == (0, 0, 0)
    assert_same_export(run.folder, undisturbed)


def test_a_text_is_tokenised_by_a_job_of_two_nodes_that_asks_for_no_gpu(
    slurm: Slurm, workplace: Workplace, tmp_path: Path
) -> None:
    tokens = [f"data.token_store={tmp_path}", f"output_dir={workplace.folder}/cluster_tokens"]
    asked = [*overrides(workplace, "cluster_tokens"), *tokens, "mode=tokenize", "launch.wait=true"]
    refused = transact(slurm, asked)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "launch.gpus_per_node=1 is not allowed: mode=tokenize asks for no GPUs" in refused.stderr
    done = transact(slurm, [*asked, "launch.gpus_per_node=0"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = workplace.folder / "cluster_tokens_tokenize"
    record, job = read_json(folder / "run.json"), read_json(folder / "job.json")["job"]
    assert (record["state"], record["world_size"], record["stages"]) == ("done", 2, {})
    assert "gpu" not in slurm.run("scontrol", "show", "job", job)
    assert "gpus" not in next((folder / "logs").glob("*.sh")).read_text()
    # Two stores, and how much of the one stands in the other.
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", "", ".json"]
    assert not (workplace.folder / "cluster_tokens").exists()
