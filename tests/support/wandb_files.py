"""Read back what wandb wrote offline."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def wait_until_written(run_folder: Path, seconds: float = 10) -> Path:
    """wandb's service writes the end of the file shortly after `finish` has returned. Returns the file."""
    (log,) = run_folder.glob("*.wandb")
    deadline = time.monotonic() + seconds
    size = -1
    while time.monotonic() < deadline and (log.stat().st_size != size or size < 100):
        size = log.stat().st_size
        time.sleep(0.3)
    return log


def inspected(run_folder: Path) -> str:
    """The run's transaction log, a record a line, as `wandb leet inspect` reads it."""
    wait_until_written(run_folder)
    wandb_command = Path(sys.executable).with_name("wandb")
    command = [wandb_command, "leet", "inspect", "--json", run_folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def records(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    lines = map(json.loads, inspected(run_folder).splitlines())
    return [line[kind] for line in lines if line["type"] == kind]


def series(rows: list[dict[str, Any]], axis: str, name: str) -> list[tuple[float, float]]:
    return [(row[axis], row[name]) for row in rows if name in row]
