"""The command that goes on with a run is one that a shell takes, and holds no secret."""

from __future__ import annotations

import shlex

import pytest

from transact.config.request import check_arguments, run_command


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


@pytest.mark.parametrize("word", ["launch.setup=[export KEY=planted]", "+launch.setup=[~/planted]"])
def test_lines_of_setup_that_cannot_be_read_are_not_shown(word: str) -> None:
    """Hydra's own words about them would repeat them."""
    with pytest.raises(ValueError, match=r"cannot be read: quote each line of it, '\+?launch.setup=\[") as raised:
        check_arguments(["name=x", word])
    assert "planted" not in str(raised.value)
    check_arguments(["name=x", 'launch.setup=["export KEY=planted","source ~/bin/activate"]'])
