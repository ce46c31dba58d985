"""The learning rate of a round."""

from __future__ import annotations

import math


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
    """Linear warm-up to `peak`, then half a cosine or a straight line down to `final_fraction` of it. step: from 0."""
    warmup = warmup_steps(num_steps, warmup_fraction, min_warmup_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    remaining = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1 - final_fraction) * remaining)


def warmup_steps(num_steps: int, fraction: float, fewest: int) -> int:
    """Return the steps of the warm-up: a share of the round's, `fewest` at least, but those at most for half of it."""
    return max(math.ceil(fraction * num_steps), min(fewest, num_steps // 2))
