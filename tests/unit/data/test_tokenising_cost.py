"""What a job says of a text that it has to tokenise itself."""

from __future__ import annotations

import pytest

from transact.stages.token_stores import cost_words


@pytest.mark.parametrize(
    ("seconds", "is_gpu", "said"),
    [
        (0.5, True, False),
        (1.5, True, True),
        (30, False, False),
        (90, False, True),
    ],
)
def test_only_a_wait_that_is_worth_a_line_is_said(seconds: float, is_gpu: bool, said: bool) -> None:
    assert (cost_words(1_000_000, seconds, is_gpu=is_gpu) is not None) == said


def test_the_line_has_the_tokens_the_seconds_and_the_way_out() -> None:
    line = cost_words(50_000_000_000, 11_880.4, is_gpu=True)
    assert line is not None and "\n" not in line
    for part in ("50,000,000,000 tokens", "11,880 s", "GPUs wait", "mode=tokenize"):
        assert part in line
    assert "GPU" not in (cost_words(1000, 100, is_gpu=False) or "")
