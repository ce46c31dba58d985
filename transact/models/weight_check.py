"""Are stored weights numbers? One pass over each tensor, much faster than reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class UnusableModel(ValueError):
    """A model that nothing can be made of, which only its weights or a first measurement show. In one line."""


def not_finite(values: Tensor) -> str | None:
    """What is among the values besides finite numbers, in words; None where there is nothing else."""
    import torch

    if values.numel() == 0 or not values.is_floating_point():
        return None
    lowest, highest = torch.aminmax(values)  # of float32 at 16 GB/s of one core, where isfinite().all() has 0.3
    if bool(lowest.isnan()):  # one NaN makes both NaN
        return "values that are not numbers (NaN)"
    limit = torch.finfo(torch.float32).max  # float64 may hold more, which would be infinite here
    if not (-limit <= float(lowest) and float(highest) <= limit):
        return "infinite values"
    return None
