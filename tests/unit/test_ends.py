"""How commands end: the worst of several, and whether a run that is over was asked to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import compose_config
from transact.errors import DONE, FAILED, REFUSED, REMEDIES, worst
from transact.launch import attempt
from transact.launch.outcome import how_to_go_on
from transact.runs.run_record import LAYOUT
from transact.runs.verdict import how_it_ended


def test_a_failure_outweighs_a_refusal_wherever_several_ends_become_one() -> None:
    assert worst([]) == DONE
    assert worst([DONE, REFUSED, DONE]) == REFUSED
    assert worst([REFUSED, FAILED, DONE]) == worst([FAILED, REFUSED]) == FAILED
    assert worst([140]) == worst([REFUSED, 140, DONE]) == 140  # of a signal, in a job of SLURM


def test_what_an_earlier_attempt_left_does_not_say_how_this_one_ended(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"layout": LAYOUT, "state": "stopped", "error": "stopped by SIGINT"}))
    assert how_it_ended(tmp_path, since=time.time() - 60) == ("stopped", "stopped by SIGINT")
    assert how_it_ended(tmp_path, since=time.time() + 60) is None
    assert how_it_ended(tmp_path / "nothing", since=0) is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, Any], int], tuple[str | None, str]]:
    """How the batch script of SLURM job 7 counts an end, and the reason that it writes down."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(attempt, "own_job", lambda: ("7", 0))
    monkeypatch.setattr(attempt, "is_running_still", lambda *_: True)
    monkeypatch.setattr(attempt, "ask", lambda *words, **_: asked.append(words))

    def count(record: dict[str, Any], code: int) -> tuple[str | None, str]:
        begun = {"layout": LAYOUT, "attempt": {"job": "7", "restart": 0, "since": 0.0, "ended": False}}
        (tmp_path / "run.json").write_text(json.dumps(begun | record))
        asked.clear()
        assert attempt.end(tmp_path, code, dict.fromkeys(attempt.KINDS, 9), signal_delay=0.0) == code
        left = json.loads((tmp_path / "run.json").read_text())
        counts = left.get("interruptions", {})
        kinds = [kind for kind in attempt.KINDS if counts.get(kind)]
        assert asked == [("scontrol", "requeue", "7")] * len(kinds)
        return (kinds[0], counts["last"]) if kinds else (None, left["error"])

    return count


Counted = Callable[[dict[str, Any], int], tuple[str | None, str]]


def test_a_job_is_not_queued_again_for_training_that_came_to_nothing(counted: Counted) -> None:
    """A rank that failed may fare better the next time; what diverged would diverge again."""
    assert counted({"state": "diverged", "error": "round 1, step 5"}, FAILED) == (None, "round 1, step 5")
    assert counted({"state": "failed", "error": "rank 1 died"}, FAILED) == ("failures", "rank 1 died")


def test_the_batch_script_says_what_killed_a_rank(counted: Counted) -> None:
    died = "rank 1 died in round_01/recover: no sign of life for 20 s"
    assert counted({"state": "failed", "error": died}, 137) == (
        "failures",
        f"{died}: a rank was killed by SIGKILL ({REMEDIES['SIGKILL']})",
    )
    assert counted({"state": "running"}, 139) == ("failures", "a rank was killed by SIGSEGV")
    assert counted({"state": "failed", "error": died}, FAILED) == ("failures", died)


def test_a_point_of_a_sweep_goes_on_with_the_sweep() -> None:
    """By its own command it would be no point any more: not on the sweep's page, and another run in W&B's group."""
    config = compose_config(["name=a"])
    assert how_to_go_on(config) == []
    config.command = "python -m transact.run name=a prune.remove_fraction=0.3"
    assert how_to_go_on(config) == [f"  go on:   {config.command}"]
    config.sweep_command = "python -m transact.run -m name=a prune.remove_fraction=0.3,0.5"
    assert how_to_go_on(config) == [f"  go on:   {config.sweep_command}"]
