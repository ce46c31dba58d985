"""What a user of a cluster sees when a request cannot be met: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster_jobs import overrides
from tests.support.commands import Workplace
from tests.support.ranks import free_port
from tests.support.slurm import Slurm
from transact.run import main

Refused = Callable[..., str]


@pytest.fixture
def refused(workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that a request ends with."""

    def run(*changes: str) -> str:
        before = sorted(workplace.folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["transact", *overrides(workplace, "cluster_refused"), *changes])
        assert main() == 2
        said = capsys.readouterr()
        assert sorted(workplace.folder.rglob("*")) == before
        assert said.out == ""
        assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
        return said.err

    return run


@pytest.fixture
def on_the_cluster(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name, value in slurm.environment().items():
        monkeypatch.setenv(name, value)
    return slurm


def test_no_slurm_on_this_machine(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "SLURM is not on this machine (sbatch is not found)" in refused()


def test_controller_does_not_answer(
    refused: Refused, on_the_cluster: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (on_the_cluster.folder / "slurm.conf").read_text()
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={free_port()}", text))
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    assert "sinfo: slurm_load_partitions: Unable to contact slurm controller" in refused()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("launch.partition=gpu", "launch.partition='gpu' is not allowed: it must be one of elsewhere, high, main"),
        ("launch.nodes=3", "launch.nodes=3 is not allowed: partition main has 2"),
        ("launch.constraint=a100", "SLURM refuses the job: Batch job submission failed: Invalid feature specification"),
        ("launch.nodes=1;launch.gpus_per_node=2", "SLURM refuses the job: "),
        ("launch.memory=1T", "SLURM refuses the job: Memory specification can not be satisfied"),
        ("+launch.options.gress=gpu:8", "SLURM refuses the job: "),
        (
            "launch.gpus_per_node=16",
            "recover.batch_sequences=8 is not allowed: 32 ranks need at least one sequence each",
        ),
        ("launch.processes=2", "launch.processes=2 is not allowed: launch=slurm counts in launch.nodes"),
        (
            "launch.timeout_minutes=5;launch.signal_delay_seconds=300",
            "launch.signal_delay_seconds=300 is not allowed: it must be below the time limit",
        ),
        ("+launch.options={--gres: gpu}", "launch.options={'--gres': 'gpu'} is not allowed: it takes"),
    ],
)
def test_request_that_the_cluster_cannot_meet(
    refused: Refused, on_the_cluster: Slurm, change: str, reason: str
) -> None:
    assert reason in refused(*change.split(";"))
    assert on_the_cluster.jobs() == []


def test_folder_that_the_nodes_do_not_see(refused: Refused, on_the_cluster: Slurm) -> None:
    """Partition `elsewhere` is another machine; pytest's folder is on this one."""
    message = refused("launch.partition=elsewhere", "launch.nodes=1")
    assert "is on a file system of this machine" in message
    assert "which another-machine does not see" in message


def test_files_that_were_there_before_stay(
    workplace: Workplace, on_the_cluster: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    request = [*overrides(workplace, "cluster_refused"), f"output_dir={tmp_path}", "launch.constraint=a100"]
    monkeypatch.setattr(sys, "argv", ["transact", *request])
    assert main() == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_lines_of_setup_are_in_no_file_that_others_can_read(
    workplace: Workplace, on_the_cluster: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that waits: what submitit wrote, what SLURM keeps, and what the run folder holds."""
    name, old = "cluster_private", os.umask(0)
    options = ["+launch.options={begin: now+1hour}", "launch.setup=['export PLANTED=hunter2']"]
    monkeypatch.setattr(sys, "argv", ["transact", *overrides(workplace, name), *options])
    try:
        assert main() == 0
    finally:
        os.umask(old)
    (job,) = on_the_cluster.jobs()
    folder = workplace.folder / name
    kept = subprocess.run(["scontrol", "write", "batch_script", job, "-"], capture_output=True, check=True).stdout
    subprocess.run(["scancel", job], check=True)
    assert b"#SBATCH" in kept
    assert b"hunter2" not in kept
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path.suffix for path in written} >= {".pkl", ".sh", ".json"}
    holders = [path for path, content in written.items() if b"hunter2" in content]
    assert [path.name for path in holders] == ["setup.sh"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
