"""How commands end: the worst of several, and whether a run that is over was asked to stop."""

from __future__ import annotations

import json
import time
from pathlib import Path

from transact.attempt import _why
from transact.exit_codes import DONE, FAILED, REFUSED, worst
from transact.runtime.run_record import LAYOUT
from transact.runtime.verdict import how_it_ended


def test_a_failure_outweighs_a_refusal_wherever_several_ends_become_one() -> None:
    assert worst([]) == DONE
    assert worst([DONE, REFUSED, DONE]) == REFUSED
    assert worst([REFUSED, FAILED, DONE]) == worst([FAILED, REFUSED]) == FAILED


def test_what_an_earlier_attempt_left_does_not_say_how_this_one_ended(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"layout": LAYOUT, "state": "stopped", "error": "stopped by SIGINT"}))
    assert how_it_ended(tmp_path, since=time.time() - 60) == ("stopped", "stopped by SIGINT")
    assert how_it_ended(tmp_path, since=time.time() + 60) is None
    assert how_it_ended(tmp_path / "nothing", since=0) is None


def test_a_job_is_not_queued_again_for_training_that_came_to_nothing() -> None:
    """A rank that failed may fare better the next time; what diverged would diverge again."""
    assert _why({"state": "diverged", "error": "round 1, step 5"}, "7", FAILED, 0.0) == (None, "round 1, step 5")
    assert _why({"state": "failed", "error": "rank 1 died"}, "7", FAILED, 0.0) == ("failures", "rank 1 died")
