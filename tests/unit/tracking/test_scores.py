"""Scores of tasks as they are shown."""

from __future__ import annotations

import math
import statistics

import pytest

from transact.tracking.result_table import score_text, standard_error


@pytest.mark.parametrize("answers", [[0, 1], [1, 1, 0, 1, 0], [1] * 30 + [0] * 70, [1, 1, 1]])
def test_the_standard_error_of_right_and_wrong_answers(answers: list[int]) -> None:
    """Beside the textbook's: the sample's standard deviation over the root of its size."""
    mean = sum(answers) / len(answers)
    expected = statistics.stdev(answers) / math.sqrt(len(answers))
    assert standard_error("acc_norm", mean, len(answers)) == pytest.approx(expected)


def test_what_is_no_share_of_documents_has_none() -> None:
    assert standard_error("word_perplexity", 12.5, 100) is None
    assert standard_error("f1", 0.5, 100) is None
    assert standard_error("acc", 0.5, None) is None
    assert standard_error("acc", 0.5, 1) is None


def test_a_score_is_shown_with_its_error() -> None:
    assert score_text("acc", {"acc": 0.5, "documents": 101, "shots": 0}) == "0.5000 +- 0.0500"
    assert score_text("word_perplexity", {"word_perplexity": 12.5, "documents": 101}) == "12.5000"
