"""A signal in several kinds of stage: acknowledged at once, and acted upon before the stage ends."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.commands import Workplace
from tests.support.runs import start, wait_until
from transact.distributed.signals import STOPPING
from transact.files import read_json

# Stage -> what makes it last for minutes.
STAGES = {
    "round_00/evaluate": ["data.evaluation_sequences=2000"],
    "round_01/calibrate": ["prune.calibration_sequences=400"],
    "round_01/gram": ["prune.calibration_sequences=400"],
    "round_01/recover": ["recover.tokens=1600000", "recover.objective=cross_entropy"],
}
NUMBERS = {"round_00/evaluate": signal.SIGINT, "round_01/calibrate": signal.SIGTERM, "round_01/gram": signal.SIGUSR1}
ACKNOWLEDGED_SECONDS = 2.0


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_is_acknowledged_and_acted_upon_inside_a_stage(workplace: Workplace, stage: str) -> None:
    name = f"signal_in_{stage.replace('/', '_')}"
    folder, number = workplace.folder / name, NUMBERS.get(stage, signal.SIGUSR2)
    process = start([*workplace.overrides(name), "prune.rounds=1", *STAGES[stage]])
    lines: queue.Queue[tuple[float, str]] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put((time.monotonic(), line))

    threading.Thread(target=read, daemon=True).start()
    path = folder / "run.json"
    wait_until(lambda: path.is_file() and read_json(path).get("stage") == stage, process)
    asked = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(timeout=120) == 1
    heard = [(when, line) for when, line in list(lines.queue) if STOPPING in line]
    assert [line.strip() for _, line in heard] == [f"{number.name}: {STOPPING}"]
    assert heard[0][0] - asked < ACKNOWLEDGED_SECONDS
    record = read_json(path)
    assert (record["state"], record["error"]) == ("stopped", f"stopped by {number.name}")
    assert record["stage"] == stage and stage not in record["stages"]
    assert any("the same command goes on" in line for _, line in list(lines.queue))
    assert not list(Path(folder).glob("export*"))
