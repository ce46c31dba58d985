"""Training that has come to nothing ends with its last good checkpoint, and says what to change."""

from __future__ import annotations

import json

from tests.support.commands import Workplace, transact
from tests.support.runs import checkpoints
from transact.runs.metrics import read_metrics

TOKENS_PER_STEP = 8 * 64


def test_too_many_steps_without_effect_stop_the_run_at_the_last_good_checkpoint(workplace: Workplace) -> None:
    """The first step throws the weights out of all bounds, and every loss after it is not a number."""
    name = "diverging"
    ended = transact(
        [
            *workplace.overrides(name),
            "prune.rounds=1",
            f"recover.tokens={20 * TOKENS_PER_STEP}",
            "recover.learning_rate=1e10",
            "recover.rate_after_rise=1",  # or it would be lowered in time
            "recover.max_skipped_steps=3",
            f"engine.checkpoint_every.tokens={TOKENS_PER_STEP}",
        ]
    )
    folder = workplace.folder / name
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    reason, record, goes_on = ended.stderr.splitlines()[-3:]
    assert "4 steps in a row had a loss or gradient that is infinite or not a number" in reason
    assert record == f"  record:  {folder}/run.json"
    assert goes_on.startswith("  go on:   python -m transact.run name=")
    assert json.loads((folder / "run.json").read_text())["state"] == "diverged"
    assert [each.name for each in checkpoints(folder)] == ["round_01_step_00000001"]
    skipped = [row["recover/skipped"] for row in read_metrics(folder / "metrics.jsonl") if "recover/skipped" in row]
    assert skipped == [1, 2, 3, 4]
