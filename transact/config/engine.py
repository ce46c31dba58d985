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
    """Minutes between two checkpoints of a recovery; stretched where saving takes more than a twentieth of the time.
    null: not by time."""
    tokens: int | None = None
    """Tokens between two checkpoints of a recovery. null: not by tokens."""

    def __post_init__(self) -> None:
        for name, value in (("minutes", self.minutes), ("tokens", self.tokens)):
            require(f"engine.checkpoint_every.{name}", value, value is None or value > 0, "it must be above 0, or null")


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """How the work is spread over ranks and computed."""

    zero_stage: int = 3
    """What DeepSpeed splits over the ranks: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too."""
    dtype: str = "float32"
    """"float32" or "bfloat16": of the computation. Master weights are float32 always."""
    device: str = "auto"
    """"auto" (CUDA where there is a GPU), "cpu" or "cuda"."""
    attention: str = "sdpa"
    """"sdpa" or "eager": the attention implementation of transformers."""
    micro_batch_sequences: int
    """Sequences of a forward on each rank; bounds the memory of activations."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, more work."""
    reduce_bucket_elements: int = 5_000_000
    """Elements that DeepSpeed gathers or reduces in one call."""
    collective_timeout_minutes: float = 30.0
    """Minutes without progress after which a job that hangs is ended, with the stacks of all ranks."""
    checkpoint_every: CheckpointEveryConfig = field(default_factory=CheckpointEveryConfig)
    """How much of a recovery may be lost: a checkpoint is due when either has passed since the last one."""

    def __post_init__(self) -> None:
        require_choice("engine.dtype", self.dtype, DTYPES)
        require_choice("engine.device", self.device, DEVICES)
        require_choice("engine.attention", self.attention, ATTENTION_KINDS)
        require("engine.zero_stage", self.zero_stage, self.zero_stage in range(4), "it must be 0, 1, 2 or 3")
        require_positive(
            "engine", self, "micro_batch_sequences", "reduce_bucket_elements", "collective_timeout_minutes"
        )
