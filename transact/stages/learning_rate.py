"""The learning rate of a round."""

from __future__ import annotations

import math


def learning_rate_at(
    step: int, num_steps: int, *, peak: float, warmup_fraction: float, final_fraction: float, decay: str = "cosine"
) -> float:
    """Linear warm-up to `peak`, then half a cosine or a straight line down to `final_fraction` of it. step: from 0."""
    warmup = math.ceil(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    remaining = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1 - final_fraction) * remaining)
