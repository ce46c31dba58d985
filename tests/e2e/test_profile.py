"""A profile of some steps of a job on two ranks, which was stopped before: the same weights as without."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Mapping

import psutil

from tests.e2e.conftest import ChainRun
from tests.support.commands import ENOUGH, Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, start, wait_until


def test_steps_after_a_resume(workplace: Workplace, chain_commands: Mapping[int, ChainRun]) -> None:
    folder = workplace.folder / "profiled"
    asked = ["track.profile_steps=[30,31]", "engine.checkpoint_every.tokens=1024"]
    arguments = [*workplace.overrides("profiled"), ENOUGH, *asked]
    process = start(arguments, ranks=2)
    wait_until(lambda: checkpoints(folder), process)
    for each in psutil.Process(process.pid).children(recursive=True):  # torchrun's ranks have sessions of their own
        each.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate(timeout=60)
    assert "saved after step" in stopped
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    (trace,) = (folder / "profile").iterdir()
    assert trace.name == "steps_000030_to_000031_rank_00000.json.gz"
    said = f"profile of steps 30 to 31 on rank 0: {trace}"
    assert said in ended.stdout and said not in stopped
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        names = [str(event.get("name")) for event in json.load(file)["traceEvents"]]
    assert {name for name in names if name.startswith("step ")} == {"step 30", "step 31"}
    assert "aten::mm" in names
    assert_same_export(folder, chain_commands[2].folder)
