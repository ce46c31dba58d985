"""How the work is spread over ranks and computed: conf/engine/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_choice, require_positive
from transact.config.model import DTYPES

ATTENTION_KINDS = ("sdpa", "eager")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(kw_only=True, slots=True)
class CheckpointEveryConfig:
    """How much of a recovery may be lost: a checkpoint is due when either has passed since the last one."""

    minutes: float | None = 20.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("minutes", self.minutes), ("tokens", self.tokens)):
            require(f"engine.checkpoint_every.{name}", value, value is None or value > 0, "it must be above 0, or null")


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """How the work is spread over ranks and computed."""

    zero_stage: int = 3
    dtype: str = "float32"  # of the computation; master weights are float32 always
    device: str = "auto"
    attention: str = "sdpa"
    micro_batch_sequences: int  # per rank and forward
    activation_checkpointing: bool = False
    reduce_bucket_elements: int = 5_000_000
    collective_timeout_minutes: float = 30.0
    checkpoint_every: CheckpointEveryConfig = field(default_factory=CheckpointEveryConfig)

    def __post_init__(self) -> None:
        require_choice("engine.dtype", self.dtype, DTYPES)
        require_choice("engine.device", self.device, DEVICES)
        require_choice("engine.attention", self.attention, ATTENTION_KINDS)
        require("engine.zero_stage", self.zero_stage, self.zero_stage in range(4), "it must be 0, 1, 2 or 3")
        require_positive(
            "engine", self, "micro_batch_sequences", "reduce_bucket_elements", "collective_timeout_minutes"
        )
