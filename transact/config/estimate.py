"""What `mode=estimate` assumes: conf/estimate/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.accelerators import BY_NAME
from transact.checks import require
from transact.config.setting import LONGEST_PATH, setting


@dataclass(kw_only=True, slots=True)
class EstimateConfig:
    """What `mode=estimate` assumes of the machines. No run depends on it."""

    num_ranks: int | None = setting(None, at_least=1, at_most=10**6)
    """Ranks of the job that is estimated. null: those that the launch settings or torchrun's environment start."""
    accelerator: str | None = setting(None, choices=tuple(BY_NAME))
    """What a rank runs on, from the table in transact/accelerators.py: h100, a100_80gb and so on. null: not said."""
    memory_gib: float | None = setting(None, above=0, at_most=10**6)
    """GiB that a rank can use. null: the accelerator's, or not said."""
    tokens_per_second: float | None = setting(None, at_least=1e-3, at_most=1e12)
    """Measured throughput of recovery before any cut, of all ranks. null: from the accelerator and estimate.mfu."""
    throughput_file: str | None = setting(None, longest=LONGEST_PATH)
    """A results file of benchmarks.throughput from the same kind of machines, instead of that. null: none."""
    mfu: float = setting(0.4, at_least=1e-4, at_most=1)
    """Assumed model FLOPs utilisation, where no throughput is given."""
    price_per_gpu_hour: float | None = setting(None, above=0, at_most=1e9)
    """What a rank costs for an hour, in any currency. null: no costs are shown."""

    def __post_init__(self) -> None:
        one = self.tokens_per_second is None or self.throughput_file is None
        require("estimate.throughput_file", self.throughput_file, one, "give it or estimate.tokens_per_second")
