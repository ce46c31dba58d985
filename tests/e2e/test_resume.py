"""Stopped or killed inside a recovery: the job goes on from its newest sound checkpoint, to the same end."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import bfloat16_overrides
from tests.support.commands import Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, recovery_steps, start, wait_until

STEPS = 36
TOKENS_PER_STEP = 4 * 32


def overrides(workplace: Workplace, name: str) -> list[str]:
    """One round of enough steps to be hit in the middle; validations before and after the checkpoints.

    Steps of 4 sequences follow from the tokens, on one rank and on four. The learning rate does damage, so that it is
    lowered before some of the checkpoints.
    """
    changed = ["prune.rounds=1", f"recover.tokens={STEPS * TOKENS_PER_STEP}", "recover.validations=4"]
    changed += ["recover.batch_sequences=null", "data.sequence_length=32"]
    changed += ["engine.micro_batch_sequences=2", "recover.learning_rate=0.1"]  # for up to four ranks
    changed += ["data.evaluation_sequences=8", "eval.efficiency.measured=false"]
    return [*workplace.overrides(name), *changed, f"engine.checkpoint_every.tokens={4 * TOKENS_PER_STEP}"]


def interrupt(arguments: list[str], ranks: int, is_time: Callable[[], Any], number: int) -> str:
    """Start the job, send the signal to all of its processes when it is time, return what it printed.

    torchrun puts its ranks into sessions of their own, so a process group is not all of them.
    """
    process = start(arguments, ranks=ranks)
    wait_until(is_time, process)
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    return output


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(workplace: Workplace) -> Path:
    ended = transact(overrides(workplace, "undisturbed_recovery"), ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert "step 4 of 36: validation perplexity" in ended.stdout and "back to those weights" in ended.stdout
    return workplace.folder / "undisturbed_recovery"


def assert_same_end(folder: Path, undisturbed: Path) -> None:
    assert_same_export(folder, undisturbed)
    assert recovery_steps(folder) == list(range(1, STEPS + 1))
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "checkpoints").exists()


def test_killed_and_with_a_damaged_checkpoint_it_ends_the_same(workplace: Workplace, undisturbed: Path) -> None:
    """kill -9 of everything after two checkpoints; the newer of them is damaged besides: the older one serves."""
    arguments, folder = overrides(workplace, "killed_recovery"), workplace.folder / "killed_recovery"
    interrupt(arguments, 2, lambda: len(checkpoints(folder)) >= 2, signal.SIGKILL)
    older, newer = checkpoints(folder)[-2:]
    shard = newer / "state-00000-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert f"checkpoint {newer.name} is damaged (state-00000-of-00002.safetensors has " in ended.stdout
    assert f"goes on from checkpoint {older.name}" in ended.stdout
    assert_same_end(folder, undisturbed)


def test_asked_to_stop_it_saves_and_ends_the_same(workplace: Workplace, undisturbed: Path) -> None:
    arguments, folder = overrides(workplace, "stopped_recovery"), workplace.folder / "stopped_recovery"
    arguments += ["engine.checkpoint_every.tokens=null", "launch=local", "launch.processes=2"]

    def is_training() -> bool:
        return (folder / "metrics.jsonl").is_file() and len(recovery_steps(folder)) >= 5

    output = interrupt(arguments, 1, is_training, signal.SIGINT)
    assert "round 1: saved after step " in output
    assert "stopped by " in output
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"
    (saved,) = checkpoints(folder)
    step = int(saved.name.rpartition("_")[2])
    assert 5 <= step < STEPS
    before = json.loads((saved / "manifest.json").read_text())["seconds"]
    ended = transact(arguments)
    assert ended.returncode == 0, ended.stderr
    assert f"goes on from checkpoint {saved.name}" in ended.stdout
    assert_same_end(folder, undisturbed)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = {row["step"]: row["time"] for row in rows if "recover/loss" in row}
    seconds = json.loads((folder / "run.json").read_text())["stages"]["round_01/recover"]["seconds"]
    assert seconds > before + times[STEPS] - times[step + 1]  # of both attempts
    assert before > times[step] - times[1]


def test_other_numbers_of_ranks_go_on(workplace: Workplace, undisturbed: Path) -> None:
    """Begun on 2 ranks, killed, gone on with on 1, killed, on 2, killed, and completed on 4."""
    arguments, folder = overrides(workplace, "other_ranks"), workplace.folder / "other_ranks"
    said = []
    for ranks in (2, 1, 2):
        before = checkpoints(folder)[-1:]
        said.append(interrupt(arguments, ranks, lambda old=before: checkpoints(folder)[-1:] != old, signal.SIGKILL))
    ended = transact(arguments, ranks=4)
    assert ended.returncode == 0, ended.stderr
    assert all("goes on from checkpoint" in each for each in (*said[1:], ended.stdout))
    assert recovery_steps(folder) == list(range(1, STEPS + 1))
    expected = result(undisturbed)["pruned"]["perplexity"]
    assert result(folder)["pruned"]["perplexity"] == pytest.approx(expected, rel=0.005)
    assert result(folder)["restarts"] == 3


def test_what_saves_memory_may_be_set_in_the_middle(workplace: Workplace, undisturbed: Path) -> None:
    """Begun at ZeRO stage 0 in larger micro-batches, killed, gone on with as a run that ran out of memory would be."""
    arguments, folder = overrides(workplace, "less_memory"), workplace.folder / "less_memory"
    larger = [*arguments, "engine.zero_stage=0", "engine.micro_batch_sequences=4"]
    interrupt(larger, 2, lambda: checkpoints(folder), signal.SIGKILL)
    ended = transact([*arguments, "engine.zero_stage=3", "engine.activation_checkpointing=true"], ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert "goes on from checkpoint" in ended.stdout
    assert recovery_steps(folder) == list(range(1, STEPS + 1))
    expected = result(undisturbed)["pruned"]["perplexity"]
    assert result(folder)["pruned"]["perplexity"] == pytest.approx(expected, rel=0.005)


def test_in_bfloat16_it_ends_the_same(workplace: Workplace, bfloat16_run: Path) -> None:
    name = "killed_in_bfloat16"
    arguments, folder = [*bfloat16_overrides(workplace, name)], workplace.folder / name
    arguments.append(f"engine.checkpoint_every.tokens={3 * TOKENS_PER_STEP}")
    interrupt(arguments, 1, lambda: checkpoints(folder), signal.SIGKILL)
    ended = transact(arguments)
    assert ended.returncode == 0, ended.stderr
    assert "goes on from checkpoint" in ended.stdout
    assert_same_export(folder, bfloat16_run)
    assert recovery_steps(folder) == list(range(1, 17))
