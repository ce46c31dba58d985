"""Ranks and what they run on, as the plan assumes them."""

from __future__ import annotations

from transact.accelerators import BY_NAME, Accelerator
from transact.config import RunConfig
from transact.distributed.environment import environment_world_size


def num_ranks(config: RunConfig) -> int:
    """plan.num_ranks; else those of the launch settings, or of torchrun's environment."""
    return config.plan.num_ranks or max(config.launch.num_ranks, environment_world_size())


def accelerator(config: RunConfig) -> Accelerator | None:
    return None if config.plan.accelerator is None else BY_NAME[config.plan.accelerator]


def memory_limit_gib(config: RunConfig) -> float | None:
    """GiB of a rank; None where nothing was said."""
    known = accelerator(config)
    return config.plan.memory_gib or (known.memory_gib if known else None)
