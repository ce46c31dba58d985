"""engine.micro_batch_sequences=auto: said, recorded, kept, and the same as the number that was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.e2e.conftest import ChainRun
from tests.support.commands import ENOUGH, Workplace, transact
from tests.support.runs import assert_same_export


def test_what_is_chosen_is_said_recorded_and_kept(workplace: Workplace, chain_commands: Mapping[int, ChainRun]) -> None:
    """Two ranks have memory for all of their batch, which the other run was given as a number."""
    auto = ["engine.micro_batch_sequences=auto", "engine.activation_checkpointing=auto"]
    arguments = [*workplace.overrides("micro_batch"), ENOUGH, *auto]
    folder = workplace.folder / "micro_batch"
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert chosen_in(ended.stdout + ended.stderr).startswith(
        "4 sequences a rank, activations kept for the backward (all 4 that a batch has for it); round_0"
    )
    record = json.loads((folder / "run.json").read_text())
    assert record["engine"] == {"micro_batch_sequences": 4, "activation_checkpointing": False}
    assert_same_export(folder, chain_commands[2].folder)

    record["engine"] = {"micro_batch_sequences": 2, "activation_checkpointing": True}  # as if begun elsewhere
    (folder / "run.json").write_text(json.dumps(record))
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    said = chosen_in(ended.stdout + ended.stderr)
    assert said.startswith("2 sequences a rank, activations recomputed in the backward (as this run began); round_0")
    assert json.loads((folder / "run.json").read_text())["engine"] == record["engine"]


def chosen_in(said: str) -> str:
    (line,) = (each for each in said.splitlines() if "micro-batch: " in each)
    return line.partition("micro-batch: ")[2]
