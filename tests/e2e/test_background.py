"""launch=local without waiting: the command returns at once and says how to go on; the job ends by itself."""

from __future__ import annotations

import re

import psutil

from tests.support.commands import Workplace, transact
from tests.support.slurm import wait_for
from transact.files import read_json


def test_a_job_in_the_background(workplace: Workplace) -> None:
    folder = workplace.folder / "background"
    started = transact(
        [
            *workplace.overrides("background"),
            "prune.rounds=1",
            "recover.tokens=4096",
            "launch=local",
            "launch.wait=false",
        ]
    )
    assert started.returncode == 0, started.stderr
    (process,) = map(int, re.findall(r"^started: process (\d+)$", started.stdout, re.MULTILINE))
    assert psutil.pid_exists(process)
    assert f"tail -f {folder}/logs/{process}_0_log.out" in started.stdout
    assert f"kill {process}\n" in started.stdout
    wait_for(lambda: (folder / "result.json").is_file(), 240, "the job ends")
    wait_for(lambda: read_json(folder / "run.json")["state"] == "done", 30, "run.json says so")
