"""Whole runs that several files of tests look at, made once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import ENOUGH, Workplace, make_workplace, transact
from tests.support.once import made_once
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


class ChainRuns(Mapping[int, ChainRun]):
    """The same job on 1, 2 and 4 ranks, each made when it is first asked for; the one on 2 goes through launch=local,
    in a terminal, with secrets and another job's address in its environment."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory

    def __getitem__(self, ranks: int) -> ChainRun:
        folder, said = made_once(self.factory, f"chain_{ranks}", lambda folder: _run_chain(folder, ranks))
        ended = subprocess.CompletedProcess([], 0, said["stdout"], said["stderr"])
        return ChainRun(folder / f"ranks_{ranks}", folder / f"ranks_{ranks}_tokens", ended)

    def __iter__(self) -> Iterator[int]:
        return iter(RANKS)

    def __len__(self) -> int:
        return len(RANKS)


def _run_chain(folder: Path, ranks: int) -> dict[str, str]:
    workplace, name = make_workplace(folder), f"ranks_{ranks}"
    overrides = [*workplace.overrides(name), ENOUGH, f"data.token_store={folder}/{name}_tokens"]
    if ranks == 1:
        ended = transact(overrides)
    elif ranks == 2:
        overrides += ["launch=local", "launch.processes=2", "track.mode=offline"]
        ended = transact_in_terminal(overrides, variables=SECRETS | OF_ANOTHER_JOB | OF_WANDB, umask=UMASKS[ranks])
    else:
        overrides += ["engine.micro_batch_sequences=2", "+launch.transport={GLOO_SOCKET_IFNAME:lo}"]
        ended = transact(overrides, ranks=ranks, umask=UMASKS[ranks])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {"stdout": ended.stdout, "stderr": ended.stderr}


@pytest.fixture(scope="session")
def chain_commands(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, ChainRun]:
    return ChainRuns(tmp_path_factory)


class Folders(Mapping[int, Path]):
    def __init__(self, runs: Mapping[int, ChainRun]) -> None:
        self.runs = runs

    def __getitem__(self, ranks: int) -> Path:
        return self.runs[ranks].folder

    def __iter__(self) -> Iterator[int]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


@pytest.fixture(scope="session")
def chain_runs(chain_commands: Mapping[int, ChainRun]) -> Mapping[int, Path]:
    return Folders(chain_commands)


def bfloat16_overrides(workplace: Workplace, name: str) -> list[str]:
    """The settings of the large jobs, at a small size."""
    settings = ["engine.dtype=bfloat16", "engine.activation_checkpointing=true", "model.export_dtype=bfloat16"]
    return [*workplace.overrides(name), *settings, "prune.rounds=1"]


@pytest.fixture(scope="session")
def bfloat16_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = made_once(tmp_path_factory, "chain_bfloat16", _run_in_bfloat16)
    return folder / "bfloat16"


def _run_in_bfloat16(folder: Path) -> None:
    ended = transact(bfloat16_overrides(make_workplace(folder), "bfloat16"))
    assert ended.returncode == 0, ended.stderr
