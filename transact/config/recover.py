"""Continued pretraining after each cut: conf/recover/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.checks import require, require_at_least, require_choice, require_positive

OBJECTIVES = ("cross_entropy", "distillation", "mixed")
DECAYS = ("cosine", "linear")
LOGIT_CHUNK_ELEMENTS = 2**25  # logits that exist at a time while a loss is computed: 128 MiB in float32


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """Continued pretraining after each cut."""

    tokens: int  # over all rounds
    token_shares: list[float] | None = None  # a number per round, of any sum; null: equal
    batch_sequences: int  # the global batch, the same on any number of ranks
    learning_rate: float
    learning_rates: list[float] | None = None  # a number per round instead of learning_rate
    decay: str = "cosine"  # of the learning rate, after the warm-up
    final_learning_rate_fraction: float = 0.1
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clipping: float = 1.0  # norm; 0 is off
    validation_sequences: int = 32
    validations: int = 4  # during a round, besides the one at its start
    max_skipped_steps: int = 10  # in a row, for a loss or gradient that is infinite or not a number
    objective: str = "cross_entropy"
    distillation_weight: float = 0.5  # of the mixed objective; the rest is cross-entropy
    temperature: float = 1.0  # of both distributions in distillation

    def __post_init__(self) -> None:
        require_positive("recover", self, "batch_sequences", "learning_rate", "validation_sequences")
        require_choice("recover.decay", self.decay, DECAYS)
        require_choice("recover.objective", self.objective, OBJECTIVES)
        require_positive("recover", self, "temperature")
        weight = self.distillation_weight
        require("recover.distillation_weight", weight, 0 < weight < 1, "it must be inside (0, 1)")
        require_at_least("recover", self, 0, "tokens", "weight_decay", "gradient_clipping")
        require_at_least("recover", self, 1, "validations", "max_skipped_steps")
        for name in ("final_learning_rate_fraction", "warmup_fraction"):
            value = getattr(self, name)
            require(f"recover.{name}", value, 0 <= value <= 1, "it must be in [0, 1]")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(f"recover.{name}", value, 0 <= value < 1, "it must be in [0, 1)")
