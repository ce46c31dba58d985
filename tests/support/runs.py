"""Jobs in the background, and what they leave in their folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.commands import REPOSITORY, environment
from tests.support.warm import WarmProcess
from transact.runs.metrics import read_metrics
from transact.tracking.report.run_files import read_values


def start(overrides: list[str], *, ranks: int = 1, **options: Any) -> WarmProcess:
    """The command, not waited for, in processes that have its imports already. options: of WarmProcess."""
    return WarmProcess(overrides, ranks=ranks, cwd=REPOSITORY, environment=environment(), **options)


def wait_until(is_time: Callable[[], Any], process: WarmProcess, seconds: float = 120) -> None:
    """Wait for a moment in a job's life.

    Raises:
        AssertionError: the job ended before, or the moment does not come.
    """
    deadline = time.monotonic() + seconds
    while not is_time():
        if (code := process.poll()) is not None:
            said = process.stdout.read()[-3000:] if process.stdout is not None else "nothing that is kept"
            raise AssertionError(f"the job ended too early, with {code}; it said: {said}")
        assert time.monotonic() < deadline, "the moment does not come"
        time.sleep(0.01)


def record_of(folder: Path) -> dict[str, Any]:
    """run.json as a watcher sees it; {} before it is there, and in the moment between its name and its first words."""
    return read_values(folder / "run.json")


def checkpoints(folder: Path) -> list[Path]:
    """Complete training checkpoints, the oldest first."""
    found = (path.parent for path in folder.glob("checkpoints/*/manifest.json"))
    return sorted(path for path in found if path.suffix == "")


def recovery_steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "recover/loss" in row]


def assert_same_export(folder: Path, other: Path) -> None:
    """Bit for bit."""
    ours, theirs = (load_file(each / "export" / "model.safetensors") for each in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
