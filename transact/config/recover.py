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

    tokens: int
    """Tokens of training over all rounds; 0: none."""
    token_shares: list[float] | None = None
    """Relative number of tokens of each round. null: equal."""
    batch_sequences: int
    """Sequences of an optimizer step over all ranks, the same on any number of them."""
    learning_rate: float | None = None
    """Peak learning rate. null: it follows from the parent's size and from the share that is cut."""
    learning_rates: list[float] | None = None
    """A peak learning rate per round. null: learning_rate in all of them."""
    decay: str = "cosine"
    """Of the learning rate after the warm-up: "cosine" or "linear"."""
    final_learning_rate_fraction: float = 0.1
    """Learning rate at the end of a round, relative to the peak."""
    warmup_fraction: float = 0.05
    """Share of a round's steps over which the learning rate rises."""
    min_warmup_steps: int = 4
    """Steps over which it rises whatever the share, but at most half of a round's."""
    weight_decay: float = 0.0
    """Of AdamW."""
    beta1: float = 0.9
    """Of AdamW."""
    beta2: float = 0.95
    """Of AdamW."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient; 0: none."""
    validation_sequences: int = 32
    """Sequences of the training text that are reserved for validation."""
    validations: int = 4
    """Validations during a round, besides the one at its start; the best weights seen are kept."""
    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is infinite or not a number, beyond which the job ends."""
    objective: str = "cross_entropy"
    """"cross_entropy", "distillation" (towards the parent's distribution) or "mixed"."""
    distillation_weight: float = 0.5
    """Share of distillation in the mixed objective, inside (0, 1)."""
    temperature: float = 1.0
    """Of both distributions in distillation."""

    def __post_init__(self) -> None:
        require_positive("recover", self, "batch_sequences", "validation_sequences")
        rate = self.learning_rate
        require("recover.learning_rate", rate, rate is None or rate > 0, "it must be above 0, or null")
        require_choice("recover.decay", self.decay, DECAYS)
        require_choice("recover.objective", self.objective, OBJECTIVES)
        require_positive("recover", self, "temperature")
        weight = self.distillation_weight
        require("recover.distillation_weight", weight, 0 < weight < 1, "it must be inside (0, 1)")
        require_at_least("recover", self, 0, "tokens", "min_warmup_steps", "weight_decay", "gradient_clipping")
        require_at_least("recover", self, 1, "validations", "max_skipped_steps")
        for name in ("final_learning_rate_fraction", "warmup_fraction"):
            value = getattr(self, name)
            require(f"recover.{name}", value, 0 <= value <= 1, "it must be in [0, 1]")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(f"recover.{name}", value, 0 <= value < 1, "it must be in [0, 1)")
