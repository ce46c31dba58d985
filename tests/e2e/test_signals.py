"""A signal in several kinds of stage: acknowledged at once, and acted upon before the stage ends."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks
from tests.support.runs import assert_same_export, checkpoints, record_of, recovery_steps, start, wait_until
from tests.support.warm import WarmProcess
from transact.config.compose import compose_config
from transact.distributed.process import ProcessGroup
from transact.distributed.signals import STOPPING
from transact.files import TEMPORARY_SUFFIX, read_json
from transact.launch.worker import work
from transact.runs.metrics import read_metrics

# Stage -> what makes it last for minutes.
STAGES = {
    "round_00/evaluate": ["data.evaluation_sequences=2000"],
    "round_01/calibrate": ["prune.calibration_sequences=400"],
    "round_01/gram": ["prune.calibration_sequences=400", "prune.method.gram_gib=1e-9"],  # a layer has its own pass
    "round_01/split": ["prune.split=auto", "recover.validation_sequences=120"],
    "round_01/slice": ["prune.calibration_sequences=400"],
    "round_01/recover": ["recover.tokens=1600000", "recover.objective=cross_entropy"],
    "tasks": ["recover.tokens=0", "+eval.texts.more={source: files, files: ['{train}']}", "eval.text_sequences=2000"],
}
NUMBERS = {"round_00/evaluate": signal.SIGINT, "round_01/calibrate": signal.SIGTERM, "round_01/gram": signal.SIGUSR1}
ACKNOWLEDGED_SECONDS = 2.0


class Listener:
    """Keeps what a job says, with the moments."""

    def __init__(self, process: WarmProcess) -> None:
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue()
        self._stream = process.stdout or ()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put((time.monotonic(), line.strip()))

    def said(self, part: str) -> list[tuple[float, str]]:
        return [(when, line) for when, line in list(self._lines.queue) if part in line]

    def check_acknowledged(self, number: signal.Signals, asked: float) -> None:
        """After the job's end."""
        self._reader.join(timeout=30)  # what was said last may still be in the pipe
        heard = self.said(STOPPING)
        assert [line for _, line in heard] == [f"{number.name}: {STOPPING}"], "\n".join(
            line for _, line in self.said("")
        )
        assert heard[0][0] - asked < ACKNOWLEDGED_SECONDS


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_is_acknowledged_and_acted_upon_inside_a_stage(workplace: Workplace, stage: str) -> None:
    name = f"signal_in_{stage.replace('/', '_')}"
    folder, number = workplace.folder / name, NUMBERS.get(stage, signal.SIGUSR2)
    changes = [each.replace("{train}", str(workplace.train)) for each in STAGES[stage]]
    process = start([*workplace.overrides(name), "prune.rounds=1", *changes])
    listener = Listener(process)
    path = folder / "run.json"
    wait_until(lambda: record_of(folder).get("stage") == stage, process)
    asked = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(timeout=120) == 1
    listener.check_acknowledged(number, asked)
    record = read_json(path)
    assert (record["state"], record["error"]) == ("stopped", f"stopped by {number.name}")
    assert record["stage"] == stage and stage not in record["stages"]
    assert listener.said("the same command goes on")
    assert not list(Path(folder).glob("export*"))


def test_a_signal_ends_a_tokenisation(workplace: Workplace, tmp_path: Path) -> None:
    """Of a text that takes a minute, before the run has a folder."""
    text, store, folder = tmp_path / "long.txt", tmp_path / "tokens", tmp_path / "run"
    line = " ".join(f"word{number}" for number in range(4000))
    text.write_text("\n\n".join(f"{number} {line}" for number in range(2000)))
    changes = [f"data.train.files=[{text}]", f"data.token_store={store}", f"output_dir={folder}"]
    process = start([*workplace.overrides("tokenising"), *changes, "recover.tokens=1000000000"])
    listener = Listener(process)

    def stores(suffix: str) -> list[Path]:
        return [path for path in store.glob("*") if path.is_dir() and path.suffix == suffix]

    # The held-out text comes first.
    wait_until(lambda: len(stores("")) == 1 and stores(TEMPORARY_SUFFIX), process)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    listener.check_acknowledged(signal.SIGTERM, asked)
    assert not folder.exists()
    assert len(stores("")) == 1


VALIDATION = "recover/validation_perplexity"
VALIDATING = ["prune.rounds=1", "recover.tokens=2048", "recover.validations=4", "recover.validation_sequences=120"]
VALIDATING += ["data.evaluation_sequences=8", "eval.efficiency.measured=false"]
VALIDATING += ["engine.checkpoint_every.minutes=null", "recover.objective=cross_entropy"]


def test_a_validation_inside_a_recovery_is_left_and_done_again(workplace: Workplace) -> None:
    """Each of four steps takes far less time than the validation behind it; the second one is interrupted."""
    whole, folder = (workplace.folder / name for name in ("validated", "validation_left"))
    undisturbed = start([*workplace.overrides(whole.name), *VALIDATING])
    assert undisturbed.wait(timeout=240) == 0
    process = start([*workplace.overrides(folder.name), *VALIDATING])
    listener = Listener(process)
    path = folder / "metrics.jsonl"
    wait_until(lambda: path.is_file() and len(recovery_steps(folder)) == 2, process)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGUSR2)
    assert process.wait(timeout=60) == 1
    listener.check_acknowledged(signal.SIGUSR2, asked)
    position = read_json(checkpoints(folder)[-1] / "manifest.json")
    assert (position["step"], position["validated_step"]) == (2, 1)
    again = start([*workplace.overrides(folder.name), *VALIDATING])
    assert again.wait(timeout=240) == 0
    assert_same_export(folder, whole)
    figures = [
        [row[VALIDATION] for row in read_metrics(each / "metrics.jsonl") if VALIDATION in row]
        for each in (folder, whole)
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 1 + 4


# Two layers, texts of 32, 16 and 8 sequences in micro-batches of 4. Stage -> at least so many moments to stop it at.
OBS = {
    "round_00/evaluate": 32 // 4,
    "round_01/calibrate": 16 // 4,
    "round_01/gram": 2,
    "round_01/split": 2 + 2 * (3 + 8 // 4),
    "round_01/slice": 3,
    "round_01/recover": 8 // 4,
    "round_02/select": 2,
    "round_02/slice": 3,
}
SEQUENTIAL = {"round_01/slice": 2 * 4 * (16 // 4)}


def moments_of(overrides: list[str]) -> dict[str, int]:
    """Run a job; how often it looked, by stage, whether it is asked to stop."""
    looked: Counter[str] = Counter()
    look = ProcessGroup.stop_if_asked

    def count(group: ProcessGroup) -> None:
        looked[group.watchdog.stage] += 1
        look(group)

    ProcessGroup.stop_if_asked = count  # type: ignore[method-assign]  # this process ends with it
    assert work(compose_config(overrides)) == 0
    return dict(looked)


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("obs", ["prune/method=obs", "prune.split=auto", "prune.rounds=2"], OBS),
        ("sequential", ["prune.rounds=1"], SEQUENTIAL),
    ],
)
def test_every_piece_of_a_stage_is_a_moment_to_stop(
    workplace: Workplace, name: str, settings: list[str], least: dict[str, int]
) -> None:
    """Also of stages that a small model is through with before a signal could come."""
    overrides = [*workplace.overrides(f"moments_{name}"), "recover.tokens=2048", *settings]
    (looked,) = run_on_ranks(1, moments_of, overrides)
    assert {stage: count for stage, count in least.items() if looked.get(stage, 0) < count} == {}, looked
    assert looked["round_01/gram"] < 16 // 4, "Gram matrices are summed in the forwards of calibration"
