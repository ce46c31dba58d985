"""What `mode=plan` assumes: conf/plan/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.accelerators import BY_NAME
from transact.checks import require, require_choice


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """What `mode=plan` assumes of the machines. No run depends on it."""

    num_ranks: int | None = None
    """Ranks of the job that is planned. null: those that the launch settings or torchrun's environment start."""
    accelerator: str | None = None
    """What a rank runs on, from the table in transact/accelerators.py: h100, a100_80gb and so on. null: not said."""
    memory_gib: float | None = None
    """GiB that a rank can use. null: the accelerator's, or not said."""
    tokens_per_second: float | None = None
    """Measured throughput of recovery before any cut, of all ranks. null: from the accelerator and plan.mfu."""
    throughput_file: str | None = None
    """A results file of benchmarks.throughput from the same kind of machines, instead of that. null: none."""
    mfu: float = 0.4
    """Assumed model FLOPs utilisation, inside (0, 1], where no throughput is given."""
    price_per_gpu_hour: float | None = None
    """What a rank costs for an hour, in any currency. null: no costs are shown."""

    def __post_init__(self) -> None:
        if self.accelerator is not None:
            require_choice("plan.accelerator", self.accelerator, tuple(BY_NAME))
        require("plan.mfu", self.mfu, 0 < self.mfu <= 1, "it must be inside (0, 1]")
        for name in ("num_ranks", "memory_gib", "tokens_per_second", "price_per_gpu_hour"):
            value = getattr(self, name)
            require(f"plan.{name}", value, value is None or value > 0, "it must be above 0, or null")
        one = self.tokens_per_second is None or self.throughput_file is None
        require("plan.throughput_file", self.throughput_file, one, "give it or plan.tokens_per_second")
