"""A disk that is full, a folder in use: clear words, nothing lost, and it goes on when the cause is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import ENOUGH, Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, start, wait_until
from transact.runs.metrics import read_metrics

TOKENS_PER_STEP = 8 * 64


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "small", "64m") as folder:
        yield folder


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_space(
    workplace: Workplace, small_disk: Path, chain_runs: Mapping[int, Path]
) -> None:
    folder = small_disk / "run"
    arguments = [*workplace.overrides("full_disk"), ENOUGH, f"output_dir={folder}"]
    arguments.append(f"engine.checkpoint_every.tokens={2 * TOKENS_PER_STEP}")
    process = start(arguments, stderr=subprocess.PIPE)
    wait_until(lambda: checkpoints(folder), process)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "round_01/recover: the disk is full" in errors
    assert checkpoints(folder)
    ballast.unlink()
    again = transact(arguments)
    assert again.returncode == 0, again.stderr
    assert "goes on from checkpoint" in again.stdout
    assert_same_export(folder, chain_runs[1])


def test_a_checkpoint_that_cannot_be_saved_is_an_alert(workplace: Workplace) -> None:
    folder = workplace.folder / "no_room_for_checkpoints"
    arguments = [*workplace.overrides(folder.name), f"engine.checkpoint_every.tokens={2 * TOKENS_PER_STEP}"]
    process = start(arguments)
    wait_until(lambda: checkpoints(folder), process)
    process.kill()
    process.wait()
    shutil.rmtree(folder / "checkpoints")
    with disk(folder / "checkpoints", "64k"):  # a folder of the run's own: it takes no other
        failed = transact(arguments)
    assert failed.returncode == 1
    assert "alert: round 1, step 2: checkpoint: cannot be saved: " in failed.stdout
    (alert,) = [row for row in read_metrics(folder / "metrics.jsonl") if row.get("alert") == "checkpoint"]
    assert alert["step"] == 2
    assert "No space left on device" in alert["alert/text"]


def test_a_folder_in_use_is_refused_and_a_dead_owner_does_not_hold_it(workplace: Workplace) -> None:
    folder = workplace.folder / "in_use"
    changes = ["prune.rounds=1", "recover.tokens=1600000", "recover.objective=cross_entropy"]
    arguments = [*workplace.overrides("in_use"), *changes, f"engine.checkpoint_every.tokens={2 * TOKENS_PER_STEP}"]
    process = start(arguments)
    wait_until(lambda: checkpoints(folder), process)
    refused = transact(arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: '{folder}' is in use by another run (host ")
    assert f"process {process.pid}," in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = start(arguments, stderr=subprocess.PIPE)
    while "goes on from checkpoint" not in (line := second.stdout.readline()):  # type: ignore[union-attr]
        assert line, second.stderr.read()  # type: ignore[union-attr]
    second.kill()
    second.wait()
