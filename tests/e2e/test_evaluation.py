"""A run that evaluates more than its own text: the parent and the pruned model side by side, wherever results go."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support.commands import Workplace, transact
from tests.support.runs import start, wait_until
from tests.support.tasks import SHOTS, write_tasks
from tests.support.wandb_files import records
from transact.files import read_json

pytest.importorskip("lm_eval", reason="the tasks need transact[eval]")


def asked_for(workplace: Workplace, name: str, shots: dict[str, int]) -> list[str]:
    tasks = workplace.folder / "tasks"
    if not tasks.is_dir():
        write_tasks(tasks, workplace.heldout.read_text()[:250])
    named = ", ".join(f"{name}: {count}" for name, count in shots.items())
    return [
        *workplace.overrides(name),
        "prune.rounds=1",
        "recover.tokens=4096",
        "track.mode=offline",
        f"+eval.texts.seen={{source: files, files: ['{workplace.train}']}}",
        "eval.text_sequences=8",
        f"+eval.tasks={{{named}}}",
        f"eval.task_folders=['{tasks}']",
        "eval.efficiency.measured=false",
    ]


@pytest.fixture(scope="module")
def run(workplace: Workplace) -> Path:
    done = transact(asked_for(workplace, "evaluated", SHOTS), seconds=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace.folder / "evaluated"


def test_both_models_are_evaluated_on_every_text_and_task(run: Path) -> None:
    found = json.loads((run / "comparison.json").read_text())
    assert found.keys() == {"dense", "pruned"}
    for result in found.values():
        assert result["tasks"].keys() == SHOTS.keys()
        assert result["texts"]["seen"]["tokens"] == 8 * 63
        assert result["texts"]["seen"]["documents_trained_on"] > 0  # it is a part of the training text
    dense, pruned = (found[role]["texts"]["seen"]["perplexity"] for role in ("dense", "pruned"))
    assert dense > pruned > 1  # the dense model is random, the pruned one was trained a little


def test_held_out_text_that_is_trained_on_is_told(run: Path) -> None:
    """All of "seen" is in the training text; the modules of data.evaluation share a few phrases with it."""
    shares = json.loads((run / "run.json").read_text())["texts_trained_on"]
    assert shares["eval.texts.seen"] > 0.99 and shares["data.evaluation"] < 0.2
    assert (
        "of the windows of eval.texts.seen (13 tokens) stand in the training text too"
        in (run / "report.html").read_text()
    )


def test_result_model_card_and_tracker_have_them(run: Path) -> None:
    found, result = (json.loads((run / name).read_text()) for name in ("comparison.json", "result.json"))
    for role in ("dense", "pruned"):
        assert result[role]["tasks"] == found[role]["tasks"]
        assert result[role]["texts"] == found[role]["texts"]
    assert "efficiency" not in result
    values = [found[role]["tasks"]["how_likely"]["byte_perplexity"] for role in ("dense", "pruned")]
    line = f"| how_likely | byte_perplexity | {values[0]:.4g} | {values[1]:.4g} |"
    card = ModelCard.load(run / "export" / "README.md")
    assert line in card.text
    scores = found["pruned"]["tasks"]
    counts = {"shots", "documents"}
    tasks = [scores[name][metric] for name in scores for metric in scores[name] if metric not in counts]
    # Its own text first; "seen" is none: it was trained on.
    assert [each.metric_value for each in card.data.eval_results or []] == [result["pruned"]["perplexity"], *tasks]
    folder = next((run / "wandb").glob("offline-run-*"))
    updates = {key: value for item in records(folder, "summary") for key, value in item["update"].items()}
    assert updates["eval/tasks/how_likely/byte_perplexity_pruned"] == pytest.approx(values[1])


def test_what_was_measured_before_a_stop_is_not_measured_again(run: Path, workplace: Workplace) -> None:
    arguments, folder = asked_for(workplace, "stopped_tasks", SHOTS), workplace.folder / "stopped_tasks"
    process = start(arguments)
    measured = folder / "measured.json"
    wait_until(lambda: measured.is_file() and "how_likely" in read_json(measured)["dense"]["tasks"], process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "dense: seen: perplexity" in said
    ended = transact(arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for kept in ("seen", "how_likely"):
        assert f"dense: {kept}: " not in ended.stdout and f"pruned: {kept}: " in ended.stdout
    assert json.loads((folder / "comparison.json").read_text()) == json.loads((run / "comparison.json").read_text())


def test_more_may_be_asked_of_a_finished_run(run: Path, workplace: Workplace) -> None:
    """Another number of shots: tasks, and what tells of them, are done again, and nothing else."""
    before = json.loads((run / "run.json").read_text())["stages"]
    done = transact(asked_for(workplace, "evaluated", SHOTS | {"which_word": 1}))
    assert done.returncode == 0, done.stdout + done.stderr
    after = json.loads((run / "run.json").read_text())["stages"]
    again = {name for name in after if after[name]["finished"] != before[name]["finished"]}
    assert again == {"tasks", "export"}
    assert "dense: which_word: " in done.stdout
    for kept in ("seen", "how_likely"):
        assert f"dense: {kept}: " not in done.stdout and f"pruned: {kept}: " not in done.stdout
    for role in ("dense", "pruned"):
        assert json.loads((run / "result.json").read_text())[role]["tasks"]["which_word"]["shots"] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["eval.tasks.which_word=9"], "eval.tasks.which_word=9 is not allowed: there are 4 examples to show"),
        (["+eval.tasks.no_such_task=0"], "eval.tasks: 'no_such_task' is a task neither of lm-eval nor of"),
        (["+eval.texts.other={source: hub, hub_id: nobody/nothing}"], "eval.texts.other"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_work(
    run: Path, workplace: Workplace, changes: list[str], told: str
) -> None:
    refused = transact([*asked_for(workplace, "refused", SHOTS), *changes])
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert told in refused.stderr
    assert refused.stderr.count("error:") == 1
    if "eval.tasks" in told:
        assert "check weights" not in refused.stderr  # nor is a parent fetched and read for it
    assert not (workplace.folder / "refused").exists()
