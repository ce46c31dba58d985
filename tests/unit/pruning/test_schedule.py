from __future__ import annotations

from itertools import pairwise

import pytest

from transact.pruning.schedule import SCHEDULES, batch_sequences, remove_fractions, token_budgets


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.375, 0.75]),
        ("geometric", [0.5, 0.75]),  # half of it, then half of what is left
        ("cubic", [0.65625, 0.75]),  # 0.75 * (1 - 0.5 ** 3)
    ],
)
def test_fractions_by_hand(kind: str, expected: list[float]) -> None:
    assert remove_fractions(0.75, 2, kind) == pytest.approx(expected)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("rounds", [1, 7])
def test_fractions_grow_and_end_exactly(kind: str, rounds: int) -> None:
    fractions = remove_fractions(0.3, rounds, kind)
    assert len(fractions) == rounds
    assert fractions[-1] == 0.3
    assert all(0 < low < high for low, high in pairwise(fractions))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, "linear"), "between 0 and 1, got 0.0"),
        ((1.0, 1, "linear"), "between 0 and 1, got 1.0"),
        ((float("nan"), 1, "linear"), "between 0 and 1, got nan"),
        ((0.5, 0, "linear"), "rounds must be at least 1, got 0"),
        ((0.5, 1, "square"), "one of linear, geometric, cubic, got 'square'"),
    ],
)
def test_refuses(arguments: tuple[float, int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove_fractions(*arguments)


@pytest.mark.parametrize(
    ("total", "shares", "rounds", "expected"),
    [
        (1000, None, 4, [250, 250, 250, 250]),
        (1000, [1, 1, 2], 3, [250, 250, 500]),
        (1000, [0.2, 0.6], 2, [250, 750]),  # normalised by their sum
        (1009, None, 1, [1000]),  # whole steps of 10 tokens
        (40, None, 3, [10, 20, 10]),  # nothing lost to rounding
        (10, None, 3, [10, 10, 10]),  # no round goes without a step
        (5, None, 1, [10]),
        (0, [1, 2], 2, [0, 0]),
    ],
)
def test_token_budgets(total: int, shares: list[float] | None, rounds: int, expected: list[int]) -> None:
    assert token_budgets(total, shares, rounds, tokens_per_step=10) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, [1.0], 2, 10), "each of 2 rounds, got 1"),
        ((100, [1.0, 0.0], 2, 10), "must be positive"),
        ((0, [1.0, -1.0], 2, 10), "must be positive"),
        ((-1, None, 2, 10), "total_tokens >= 0"),
        ((100, None, 2, 0), "tokens_per_step >= 1"),
    ],
)
def test_token_budgets_refuse(arguments: tuple[int, list[float] | None, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_budgets(*arguments)


@pytest.mark.parametrize(
    ("tokens", "length", "ranks", "expected"),
    [
        (131_072, 512, 1, 1),  # 507 tokens
        (131_072, 64, 2, 8),
        (131_072, 512, 16, 16),  # every rank has one
        (524_288, 256, 1, 4),
        (10**9, 4096, 8, 8),  # 44,272 tokens, 10.8 sequences: in powers of two nearer to 8
        (10**9, 1024, 24, 48),
        (0, 4096, 4, 4),
    ],
)
def test_a_batch_grows_with_the_root_of_the_tokens(tokens: int, length: int, ranks: int, expected: int) -> None:
    assert batch_sequences(tokens, length, ranks) == expected
