"""Keys of a terminal and its end reach the whole job: under launch=local too, by the name of what was pressed."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.commands import REPOSITORY, Workplace, environment
from tests.support.runs import checkpoints, wait_until
from tests.support.slurm import wait_for
from tests.support.warm import WarmProcess
from transact.files import read_json

CTRL_C, CTRL_Z = b"\x03", b"\x1a"
LAUNCHES = {"inline": ["launch=inline"], "local": ["launch=local", "launch.processes=2"]}
SECONDS = 120.0


def arguments(workplace: Workplace, name: str, launch: str) -> list[str]:
    """Of a recovery that would last for minutes."""
    long = ["prune.rounds=1", "recover.tokens=1600000", "recover.objective=cross_entropy"]
    return [*workplace.overrides(name), *long, "data.evaluation_sequences=8", *LAUNCHES[launch]]


def is_training(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and '"recover/loss"' in metrics.read_text()


class Terminal:
    """A terminal whose keys are pressed here, and whose screen nobody looks at."""

    def __init__(self) -> None:
        self.keys, theirs = pty.openpty()
        self.path = os.ttyname(theirs)
        self._held = [theirs]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while os.read(self.keys, 65536):
                pass

    def close(self) -> None:
        for each in (*self._held, self.keys):
            os.close(each)


@contextmanager
def job_in_terminal(overrides: list[str], folder: Path) -> Iterator[tuple[psutil.Process, Terminal]]:
    """The command in the middle of its recovery, started by what stands for a shell."""
    terminal = Terminal()
    shell = WarmProcess(
        overrides, cwd=REPOSITORY, environment=environment() | {"TERM": "xterm"}, terminal=terminal.path
    )
    wait_until(lambda: is_training(folder), shell, SECONDS)
    (command,) = psutil.Process(shell.pid).children()
    processes = [command, *command.children(recursive=True)]
    try:
        yield command, terminal
        assert not psutil.wait_procs(processes, SECONDS)[1]
    finally:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_closing_the_terminal_saves_and_stops(workplace: Workplace, launch: str) -> None:
    folder = workplace.folder / f"hung_up_{launch}"
    with job_in_terminal(arguments(workplace, folder.name, launch), folder) as (_, terminal):
        terminal.close()
    record = read_json(folder / "run.json")
    assert (record["state"], record["error"]) == ("stopped", "stopped by SIGHUP")
    assert checkpoints(folder)


def test_ctrl_z_suspends_the_ranks_and_ctrl_c_twice_within_a_second_is_one(workplace: Workplace) -> None:
    folder = workplace.folder / "keys"
    with job_in_terminal(arguments(workplace, folder.name, "local"), folder) as (command, terminal):
        (controller,) = command.children()
        job = [command, controller, *controller.children()]
        assert len(job) == 4
        os.write(terminal.keys, CTRL_Z)
        wait_for(lambda: {each.status() for each in job} == {psutil.STATUS_STOPPED}, 30, "all stand still")
        command.resume()
        wait_for(lambda: psutil.STATUS_STOPPED not in {each.status() for each in job}, 30, "all go on")
        os.write(terminal.keys, CTRL_C)
        time.sleep(0.3)
        os.write(terminal.keys, CTRL_C)
    record = read_json(folder / "run.json")
    assert (record["state"], record["error"]) == ("stopped", "stopped by SIGINT")
    assert checkpoints(folder)
