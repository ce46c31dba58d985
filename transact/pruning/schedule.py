"""Spread the work over the rounds: what to remove, how many tokens to recover with, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

# From (final fraction, share of the rounds done) to the fraction removed so far.
_CURVES: dict[str, Callable[[float, float], float]] = {
    # The same number of parameters every round.
    "linear": lambda final, done: final * done,
    # The same share of what is left every round, so later rounds remove less.
    "geometric": lambda final, done: 1 - (1 - final) ** done,
    # Most of it early, while there is slack to recover: Zhu & Gupta, arXiv 1710.01878.
    "cubic": lambda final, done: final * (1 - (1 - done) ** 3),
}
SCHEDULES: tuple[str, ...] = tuple(_CURVES)

# What Minitron and modelopt train with where half of the parameters are cut.
REFERENCE_RATE, REFERENCE_PARAMETERS = 1e-4, 8e9
SIZE_EXPONENT = 0.4  # 8e9 -> 1e-4, 1.3e8 -> 5e-4
HALF = 0.5  # share of the parameters cut above which the rate grows no more
LARGEST_RATE = 2e-3
ADAPTERS_RATE = 10.0  # of the rate for all weights (Schulman et al., LoRA Without Regret, 2025), for alpha = 32
BATCH_OF_TOKENS = 1.4  # tokens of a batch over the square root of all: 512 for 131,072, 44,000 for a billion


def remove_fractions(
    remove_fraction: float, rounds: int, kind: str, shares: Sequence[float] | None = None
) -> list[float]:
    """Return the cumulative fraction of the parent's parameters removed after each round.

    Args:
        remove_fraction: share of all parameters removed after the last round, in (0, 1).
        rounds: number of rounds, at least 1.
        kind: one of `SCHEDULES`.
        shares: relative size of each round's cut, instead of a schedule.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 < remove_fraction < 1:
        raise ValueError(f"remove_fraction must be between 0 and 1, got {remove_fraction}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if kind not in _CURVES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    if shares is not None:
        if len(shares) != rounds or min(shares) <= 0:
            raise ValueError(f"need one positive share for each of {rounds} rounds, got {list(shares)}")
        earlier = [remove_fraction * done / sum(shares) for done in accumulate(shares[:-1])]
    else:
        earlier = [_CURVES[kind](remove_fraction, turn / rounds) for turn in range(1, rounds)]
    return [*earlier, remove_fraction]  # the last one without rounding error


def token_budgets(total_tokens: int, shares: Sequence[float] | None, rounds: int, tokens_per_step: int) -> list[int]:
    """Split the recovery tokens over the rounds, in whole optimizer steps.

    The sum is ``total_tokens`` rounded down to whole steps, unless a round would get no step at
    all: then it gets one. No tokens in total means none in any round.

    Args:
        total_tokens: tokens for all rounds together, at least 0.
        shares: relative weight of each round, normalised by their sum; ``None`` for equal ones.
        rounds: number of rounds, at least 1.
        tokens_per_step: tokens in one optimizer step over all ranks.

    Returns:
        Tokens of each round, multiples of ``tokens_per_step``.

    Raises:
        ValueError: a count is out of range, or shares are not positive, one for each round.
    """
    if total_tokens < 0 or rounds < 1 or tokens_per_step < 1:
        raise ValueError(
            f"need total_tokens >= 0, rounds >= 1 and tokens_per_step >= 1, "
            f"got {total_tokens}, {rounds} and {tokens_per_step}"
        )
    weights = [1.0] * rounds if shares is None else list(shares)
    if len(weights) != rounds:
        raise ValueError(f"need one token share for each of {rounds} rounds, got {len(weights)}")
    if not all(weight > 0 for weight in weights):
        raise ValueError(f"token shares must be positive, got {weights}")
    if total_tokens == 0:
        return [0] * rounds
    return [steps * tokens_per_step for steps in _split(total_tokens // tokens_per_step, weights)]


def _split(total: int, weights: Sequence[float]) -> list[int]:
    """Split a total into whole numbers in proportion to the weights, each at least 1."""
    # Round the cumulative boundaries, not the parts, so that the errors do not add up.
    reached = [round(total * done / sum(weights)) for done in accumulate(weights)]
    return [max(1, end - start) for start, end in zip([0, *reached], reached, strict=False)]


def peak_learning_rate(parent_parameters: int, remove_fraction: float, *, of_adapters: bool = False) -> float:
    """Return the peak learning rate that recovers a cut, to two digits.

    It is a power of the parent's size, and in proportion to the share that is removed, up to half. At 8 billion
    parameters and half of them removed it is what Minitron and modelopt distil with (1e-4, about a fifth of the
    pretraining peak); smaller models were measured, and so was the share (docs/log.md). Rates that rise with the share
    removed are TransAct's.

    Args:
        parent_parameters: of the dense parent, embeddings counted.
        remove_fraction: share of them removed after the cut, in all rounds so far; 1 for random weights.
        of_adapters: low-rank adapters are trained and not the weights, at ten times the rate.
    """
    by_size = REFERENCE_RATE * (REFERENCE_PARAMETERS / parent_parameters) ** SIZE_EXPONENT
    factor = ADAPTERS_RATE if of_adapters else 1.0
    return float(f"{factor * min(by_size, LARGEST_RATE) * min(1.0, remove_fraction / HALF):.1e}")


def batch_sequences(tokens: int, sequence_length: int, ranks: int) -> int:
    """Return the sequences of an optimizer step: one on each rank, doubled until it is about what the tokens ask.

    Its tokens grow with the square root of all. The batch up to which no token is wasted grows about so with the text
    that is trained on, and not with the model (arXiv 2410.21676); the factor suited two models (docs/log.md).

    Args:
        tokens: of recovery, in all rounds.
        sequence_length: tokens of a sequence.
        ranks: that share a step.
    """
    wanted = max(1.0, BATCH_OF_TOKENS * math.sqrt(tokens) / sequence_length)
    return ranks * 2 ** max(0, round(math.log2(wanted / ranks)))


def learning_rate_at(
    step: int,
    num_steps: int,
    *,
    peak: float,
    warmup_fraction: float,
    min_warmup_steps: int,
    final_fraction: float,
    decay: str = "cosine",
) -> float:
    """Return the learning rate of a step, counted from 0.

    Linear warm-up to `peak`, then half a cosine or a straight line down to `final_fraction` of it.
    """
    warmup = warmup_steps(num_steps, warmup_fraction, min_warmup_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    remaining = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1 - final_fraction) * remaining)


def validation_steps(num_steps: int, validations: int, warmup: int) -> set[int]:
    """Return the steps after which a round is validated.

    They are evenly spread, with early ones before the first: after the warm-up, and after twice as many steps again and
    again, so that a rate that does damage wastes few tokens.
    """
    regular = {round(num_steps * turn / validations) for turn in range(1, validations + 1)} - {0}
    first, early, steps = min(regular, default=0), warmup, set(regular)
    while 0 < early < first:
        steps.add(early)
        early *= 2
    return steps


def warmup_steps(num_steps: int, fraction: float, fewest: int) -> int:
    """Return the number of warm-up steps: a share of the round, but at least `fewest` or half the round if less."""
    return max(math.ceil(fraction * num_steps), min(fewest, num_steps // 2))
