"""What stands for a task, and for a model: shares that can be averaged, and the setting that all points have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.report_folders import MadeUpRun, write_run
from transact.tracking.report.drawing import Note, short
from transact.tracking.report.results import decode_seconds, decode_setting, efficiency_section, mean_score, task_score
from transact.tracking.report.run_files import read_run


def test_the_preferred_metric_stands_for_a_task() -> None:
    assert task_score({"documents": 10, "acc": 0.4, "acc_norm": 0.5}) == ("acc_norm", 0.5)
    assert task_score({"documents": 10, "my_share": 0.25}) == ("my_share", 0.25)


@pytest.mark.parametrize(
    "metrics",
    [
        {"documents": 62, "word_perplexity": 12.2, "byte_perplexity": 1.6, "bits_per_byte": 0.68},
        {"documents": 100, "bleu": 31.5},
    ],
)
def test_what_is_no_share_is_no_score(metrics: dict[str, float]) -> None:
    """wikitext is in the paper's suite: its perplexity would make a mean score rise as the model gets worse."""
    assert task_score(metrics) is None
    assert score({"piqa": {"acc": 0.6}, "boolq": {"acc": 0.8}, "other": metrics}) == pytest.approx(0.7)


def score(tasks: dict[str, dict[str, float]], *asked: str) -> float | None:
    run: Any = SimpleNamespace(
        compared={"dense": {"tasks": tasks}, "pruned": {"tasks": tasks}},
        config={"eval": {"tasks": dict.fromkeys(asked, 0)}},
    )
    return mean_score(run, "pruned")


def test_both_models_are_judged_by_the_same_tasks_and_metrics() -> None:
    """A correlation may be negative, and a figure that is not a number leaves the task out of both means."""
    dense = {"piqa": {"acc": 0.8}, "cola": {"mcc": 0.25}, "boolq": {"acc": 0.9}}
    pruned = {"piqa": {"acc": 0.6}, "cola": {"mcc": -0.1, "share": 0.9}, "boolq": {"acc": None}}
    run: Any = SimpleNamespace(compared={"dense": {"tasks": dense}, "pruned": {"tasks": pruned}}, config={})
    assert mean_score(run, "dense") == pytest.approx((0.8 + 0.25) / 2)
    assert mean_score(run, "pruned") == pytest.approx((0.6 - 0.1) / 2)


def test_a_group_of_tasks_counts_once() -> None:
    """lm-eval gives the group's own score and that of each part."""
    parts = {"mmlu_law": {"acc": 0.2}, "mmlu_physics": {"acc": 0.4}}
    assert score({"mmlu": {"acc": 0.3}, **parts, "piqa": {"acc": 0.7}}, "mmlu", "piqa") == pytest.approx(0.5)
    assert score(parts, "mmlu") == pytest.approx(0.3)  # of a group that has none all parts


def test_a_figure_that_is_rounded_up_has_the_next_unit() -> None:
    assert [short(each) for each in (999_817_216, 999_600, 6.738e9, 523_400, 0.5)] == [
        "1B",
        "1M",
        "6.74B",
        "523k",
        "0.5",
    ]


def test_points_are_compared_in_the_first_setting() -> None:
    """A slow point may have had time for no other."""

    def row(prompt_tokens: int, seconds: float) -> dict[str, object]:
        models = {"pruned": {"decode": {"wall_seconds": seconds}}}
        return {"batch_size": 1, "prompt_tokens": prompt_tokens, "new_tokens": 8, "models": models}

    found = {"latency": [row(64, 0.1), row(256, 0.2)], "settings": {"clock": "wall"}}
    assert decode_seconds(found) == 0.1
    assert decode_setting(found) == "64+8 tokens, batch 1"


def test_turns_that_there_was_no_time_for_are_told(tmp_path: Path) -> None:
    section = efficiency_section(read_run(write_run(tmp_path / "run", MadeUpRun())))
    assert section is not None
    (told,) = [block.text for block in section.blocks if isinstance(block, Note)]
    assert "medians of 3 turns" in told
    assert "Left out for want of time: 256 tokens of prompt, batch size 1: 3 of 3 turns" in told
