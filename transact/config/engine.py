"""How the work is spread over ranks and computed: conf/engine/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.config.model import DTYPES
from transact.config.setting import setting

ATTENTION_KINDS = ("sdpa", "eager")
VERIFY_KINDS = ("sample", "full")
DEVICES = ("auto", "cpu", "cuda")
MINUTES_OF_A_YEAR = 525_600


@dataclass(kw_only=True, slots=True)
class CheckpointEveryConfig:
    """How much of a recovery may be lost: a checkpoint is due when either has passed since the last one."""

    minutes: float | None = setting(20.0, above=0, at_most=MINUTES_OF_A_YEAR)
    """Minutes between two checkpoints of a recovery; stretched where saving takes more than a twentieth of the time.
    null: not by time."""
    tokens: int | None = setting(None, at_least=1, at_most=10**15)
    """Tokens between two checkpoints of a recovery. null: not by tokens."""


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """How the work is spread over ranks and computed."""

    zero_stage: int = setting(3, at_least=0, at_most=3)
    """What DeepSpeed splits over the ranks: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too."""
    dtype: str = setting("float32", choices=DTYPES)
    """"float32" or "bfloat16": of the computation. Master weights are float32 always."""
    device: str = setting("auto", choices=DEVICES)
    """"auto" (CUDA where there is a GPU), "cpu" or "cuda"."""
    attention: str = setting("sdpa", choices=ATTENTION_KINDS)
    """"sdpa" or "eager": the attention implementation of transformers."""
    micro_batch_sequences: int = setting(8, at_least=1, at_most=2**16)
    """Sequences of a forward on each rank; bounds the memory of activations."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, more work."""
    reduce_bucket_elements: int = setting(5_000_000, at_least=1, at_most=2_000_000_000)
    """Elements that DeepSpeed gathers or reduces in one call."""
    collective_timeout_minutes: float = setting(30.0, at_least=0.01, at_most=10_080)
    """Minutes without progress after which a job that hangs is ended, with the stacks of all ranks."""
    checkpoint_every: CheckpointEveryConfig = field(default_factory=CheckpointEveryConfig)
    """How much of a recovery may be lost: a checkpoint is due when either has passed since the last one."""
    verify: str = setting("sample", choices=VERIFY_KINDS)
    """How a restart sees that the parent is the same: "sample" (sizes, headers, a sample of the weights: seconds) or
    "full" (every byte, which the ranks read once at each start)."""
