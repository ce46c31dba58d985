"""The command that goes on with a run is one that a shell takes, and holds no secret."""

from __future__ import annotations

import shlex

from transact.config.request import run_command


def test_arguments_survive_the_shell() -> None:
    arguments = ["+experiment=demo", "name=a b", "model.path='it''s'", "data.train.files=[a,b]"]
    assert shlex.split(run_command(arguments, {})) == ["python", "-m", "transact.run", *arguments]


def test_it_is_started_as_it_was() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert run_command(["seed=1"], torchrun) == "torchrun --nnodes=2 --nproc-per-node=4 -m transact.run seed=1"
    srun = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert run_command(["seed=1"], srun) == "srun --ntasks=4 python -m transact.run seed=1"


def test_lines_of_setup_are_left_out() -> None:
    assert "hunter2" not in run_command(["launch=slurm", "+launch.setup=['export KEY=hunter2']"], {})
