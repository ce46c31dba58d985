"""Whole runs that several files of tests look at, made once."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from tests.support.terminal import transact_in_terminal

RANKS = (1, 2, 4)
UMASKS = {2: 0o027, 4: 0o077}
SECRETS = {
    "WANDB_API_KEY": "5ec4e7" * 6 + "f00d",
    "HF_TOKEN": "hf_PlantedTokenThatNobodyMaySee",
    "AWS_SECRET_ACCESS_KEY": "Planted/Key+ThatNobodyMaySee",
    "MY_PASSWORD": "planted-password-that-nobody-may-see",
}
OF_WANDB = {
    "WANDB_PROJECT": "of-the-environment",
    "WANDB_NAME": "named there",
    "WANDB_RUN_GROUP": "grouped there",
    "WANDB_TAGS": "tagged, there",
    "WANDB_NOTES": "noted\nthere",
}
OF_ANOTHER_JOB = {"MASTER_ADDR": "gpu003", "MASTER_PORT": "29500"}  # which the same shell started before


@dataclass(frozen=True)
class ChainRun:
    """A run folder, the store of its text, and what the command printed."""

    folder: Path
    token_store: Path
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def chain_commands(workplace: Workplace) -> dict[int, ChainRun]:
    """The same job on 1, 2 and 4 ranks; the one on 2 goes through launch=local, in a terminal, with secrets and
    another job's address in its environment."""
    runs = {}
    for ranks in RANKS:
        name, tokens = f"ranks_{ranks}", workplace.folder / f"ranks_{ranks}_tokens"
        overrides = [*workplace.overrides(name), f"data.token_store={tokens}"]
        if ranks == 1:
            ended = transact(overrides)
        elif ranks == 2:
            overrides += ["launch=local", "launch.processes=2", "track.mode=offline"]
            ended = transact_in_terminal(overrides, variables=SECRETS | OF_ANOTHER_JOB | OF_WANDB, umask=UMASKS[ranks])
        else:
            overrides.append("engine.micro_batch_sequences=2")
            ended = transact(overrides, ranks=ranks, umask=UMASKS[ranks])
        assert ended.returncode == 0, ended.stdout + ended.stderr
        runs[ranks] = ChainRun(workplace.folder / name, tokens, ended)
    return runs


@pytest.fixture(scope="session")
def chain_runs(chain_commands: dict[int, ChainRun]) -> dict[int, Path]:
    return {ranks: run.folder for ranks, run in chain_commands.items()}


def bfloat16_overrides(workplace: Workplace, name: str) -> list[str]:
    """The settings of the large jobs, at a small size."""
    settings = ["engine.dtype=bfloat16", "engine.activation_checkpointing=true", "model.export_dtype=bfloat16"]
    return [*workplace.overrides(name), *settings, "prune.rounds=1", "recover.tokens=8192"]


@pytest.fixture(scope="session")
def bfloat16_run(workplace: Workplace) -> Path:
    ended = transact(bfloat16_overrides(workplace, "bfloat16"))
    assert ended.returncode == 0, ended.stderr
    return workplace.folder / "bfloat16"
