"""Ctrl-C where nothing can be saved: before the work listens to signals, and a second one once it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import Workplace, environment
from transact.distributed.signals import SAME_KEY_SECONDS, STOPPING

# The import after which the signal is sent: the command's own, Hydra's composition, and the work's.
MOMENTS = [
    "hydra._internal",
    "omegaconf",
    "hydra.core.plugins",
    "transact.config.compose",
    "hydra._internal.hydra",
    "torch",  # some way before the work listens
]


def started(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_before_the_work_it_ends_with_one_line(workplace: Workplace, tmp_path: Path, moment: str) -> None:
    overrides = [*workplace.overrides("never"), f"output_dir={tmp_path}/never"]
    process = started(["-X", "importtime", "-m", "transact.run", *overrides], tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("import time:") and line.split("|")[-1].strip() == moment:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 1, err
    assert said == ["stopped by SIGINT; the same command goes on with what is finished, or begins"] and out == ""
    assert not list(tmp_path.iterdir())


def test_ignored_in_the_background_of_a_shell_it_stays_ignored(tmp_path: Path) -> None:
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import transact.errors as codes; "
        "codes.leave_at_interrupt(); signal.raise_signal(signal.SIGINT); print('goes on')"
    )
    out, err = started(["-c", script], tmp_path).communicate(timeout=60)
    assert (out, err) == ("goes on\n", "")


WORK = """
import sys
import time
from pathlib import Path
from transact.config.compose import compose_config
from transact.launch.outcome import outcome_recorded
from transact.distributed.signals import Interruption
from transact.distributed.process import process_group
from transact.runs.run_folder import RunFolder

config = compose_config(["name=run", f"output_dir={sys.argv[1]}"])
folder, interruption = RunFolder(Path(config.output_dir)), Interruption()
interruption.listen()
Path(config.output_dir).mkdir()
with process_group("cpu", 1.0, interruption) as group:
    with outcome_recorded(config, folder, group, clear_screen=lambda: None, when_recorded=lambda: None):
        folder.open(1)
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_second_one_leaves_at_once_and_is_recorded(tmp_path: Path) -> None:
    """The step that it is at would take a minute; two within a second are one key."""
    folder = tmp_path / "run"
    process = started(["-c", WORK, str(folder)], tmp_path)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"SIGINT: {STOPPING}\n"
    process.send_signal(signal.SIGINT)
    time.sleep(SAME_KEY_SECONDS + 0.1)
    assert process.poll() is None
    again = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - again < 5
    assert err == "left at once, after a second SIGINT; what was finished stays\n"
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["error"]) == ("stopped", "left at once, after a second SIGINT")


def test_a_sweep_ends_with_the_point_whose_ranks_had_not_begun(workplace: Workplace, tmp_path: Path) -> None:
    """They are importing, downloading or tokenising, so no rank can record the end; nor where the sweep goes on."""
    points = ["-m", "prune.remove_fraction=0.2,0.3", "launch=local", "launch.processes=1"]
    overrides = [each for each in workplace.overrides("sweep") if "remove_fraction" not in each]
    first, second = (tmp_path / "sweep" / f"prune.remove_fraction={each}" for each in (0.2, 0.3))
    for logs in range(1, 3):
        process = started(["-m", "transact.run", *overrides, f"output_dir={tmp_path}/sweep", *points], tmp_path)
        deadline = time.monotonic() + 60
        while len(list(first.glob("logs/*_log.out"))) < logs and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, out + err
        assert "the sweep is stopped too, before" in err
        assert not second.exists()
        if logs == 1:  # the second time the record says what it said before
            record = json.loads((first / "run.json").read_text())
            assert (record["state"], record["error"]) == ("stopped", "stopped by SIGINT")
