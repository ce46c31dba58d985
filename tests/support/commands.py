"""Run the real command as a user does, on the tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.tiny import train_tokenizer, write_model, write_text_files
from tests.support.warm import run_warm
from transact.distributed.environment import TRANSPORT_PREFIXES

REPOSITORY = Path(__file__).resolve().parents[2]
ENOUGH = "recover.tokens=16384"  # for every one of two rounds to gain by its recovery


@dataclass(frozen=True)
class Workplace:
    """A folder with a model, text, and a place for runs."""

    folder: Path
    model: Path
    train: Path
    heldout: Path

    def overrides(self, name: str) -> list[str]:
        """A run of seconds: two rounds down to half of the parameters."""
        return [
            f"name={name}",
            f"output_dir={self.folder}/{name}",
            f"model.path={self.model}",
            "data=local",
            f"data.train.files=[{self.train}]",
            f"data.evaluation.files=[{self.heldout}]",
            f"data.token_store={self.folder}/tokens",
            "data.sequence_length=64",
            "data.evaluation_sequences=32",
            "prune.remove_fraction=0.4",
            "prune.split=equal",
            "prune.target=transformers",
            "prune.rounds=2",
            "prune.calibration_sequences=16",
            "prune.multiple.head_dim=4",
            "recover.tokens=8192",
            "recover.batch_sequences=8",
            "recover.learning_rate=2e-3",
            "recover.validation_sequences=8",
            "recover.validations=2",
            "engine.micro_batch_sequences=4",
            "track.mode=disabled",
        ]


def make_workplace(folder: Path) -> Workplace:
    """The same model and text wherever it is made."""
    train, heldout = write_text_files(folder / "text")
    model = write_model(folder / "model", shards=True)
    train_tokenizer(train).save_pretrained(model)
    return Workplace(folder=folder, model=model, train=train, heldout=heldout)


def environment() -> dict[str, str]:
    of_others = ("WANDB", "SUBMITIT", "SLURM", *TRANSPORT_PREFIXES)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(of_others)}
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def command(overrides: list[str], ranks: int = 1) -> list[str]:
    if ranks == 1:
        return [sys.executable, "-m", "transact.run", *overrides]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend=c10d"]
    return [*launcher, "--rdzv-endpoint=127.0.0.1:0", "-m", "transact.run", *overrides]


def transact(
    overrides: list[str], *, ranks: int = 1, cwd: Path | None = None, seconds: float = 240, umask: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The command to its end, in processes that have its imports already; `command` is for the ones that have not."""
    place = cwd or REPOSITORY
    return run_warm(overrides, ranks=ranks, cwd=place, environment=environment(), seconds=seconds, umask=umask)


def transact_as_users_do(
    overrides: list[str], *, ranks: int = 1, variables: dict[str, str] | None = None, umask: int = -1
) -> subprocess.CompletedProcess[str]:
    """The command to its end, typed into a shell: a new interpreter, and torchrun for more ranks than one."""
    return subprocess.run(
        command(overrides, ranks),
        cwd=REPOSITORY,
        env=environment() | (variables or {}),
        umask=umask,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
