"""A run that evaluates more than its own text: the parent and the pruned model side by side, wherever results go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from tests.support.tasks import SHOTS, write_tasks
from tests.support.wandb_files import records

pytest.importorskip("lm_eval", reason="the tasks need transact[eval]")


@pytest.fixture(scope="module")
def run(workplace: Workplace) -> Path:
    tasks = write_tasks(workplace.folder / "tasks", workplace.heldout.read_text()[:250])
    shots = ", ".join(f"{name}: {count}" for name, count in SHOTS.items())
    overrides = [
        *workplace.overrides("evaluated"),
        "prune.rounds=1",
        "recover.tokens=4096",
        "track.mode=offline",
        f"+eval.texts.seen={{source: files, files: ['{workplace.train}']}}",
        "eval.text_sequences=8",
        f"+eval.tasks={{{shots}}}",
        f"eval.task_folders=['{tasks}']",
        "eval.efficiency.measured=false",
    ]
    done = transact(overrides, seconds=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace.folder / "evaluated"


def test_both_models_are_evaluated_on_every_text_and_task(run: Path) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    assert found.keys() == {"dense", "pruned"}
    for result in found.values():
        assert result["tasks"].keys() == SHOTS.keys()
        assert result["texts"]["seen"]["tokens"] == 8 * 63
    dense, pruned = (found[role]["texts"]["seen"]["perplexity"] for role in ("dense", "pruned"))
    assert dense > pruned > 1  # the dense model is random, the pruned one was trained a little


def test_result_model_card_and_tracker_have_them(run: Path) -> None:
    found, result = (json.loads((run / name).read_text()) for name in ("evaluation.json", "result.json"))
    for role in ("dense", "pruned"):
        assert result[role]["tasks"] == found[role]["tasks"]
        assert result[role]["texts"] == found[role]["texts"]
    assert "efficiency" not in result
    values = [found[role]["tasks"]["how_likely"]["byte_perplexity"] for role in ("dense", "pruned")]
    line = f"| how_likely | byte_perplexity | {values[0]:.4g} | {values[1]:.4g} |"
    assert line in (run / "export" / "README.md").read_text()
    folder = next((run / "wandb").glob("offline-run-*"))
    updates = {key: value for item in records(folder, "summary") for key, value in item["update"].items()}
    assert updates["eval/tasks/how_likely/byte_perplexity_pruned"] == pytest.approx(values[1])
