"""Continued pretraining after each cut: conf/recover/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.config.setting import setting

OBJECTIVES = ("cross_entropy", "distillation", "mixed")
DECAYS = ("cosine", "linear")
HIGHEST_RATE = 1e10  # far beyond use; what diverges below it is seen in training
VARIANTS = "variants"  # folder in a run's, with a further recovery of its cut in each folder of it
RESERVED_SPREAD = 8  # sequences at the beginning of the text, for each that is reserved: it is drawn from them
LOGIT_CHUNK_ELEMENTS = 2**25  # logits that exist at a time while a loss is computed: 128 MiB in float32


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """Continued pretraining after each cut."""

    tokens: int = setting(524_288, at_least=0, at_most=10**15)
    """Tokens of training over all rounds; 0: none."""
    token_shares: list[float] | None = setting(None, at_least=1e-6, at_most=1e6)
    """Relative number of tokens of each round. null: equal."""
    batch_sequences: int = setting(16, at_least=1, at_most=2**24)
    """Sequences of an optimizer step over all ranks, the same on any number of them."""
    learning_rate: float | None = setting(None, above=0, at_most=HIGHEST_RATE)
    """Peak learning rate. null: it follows from the parent's size and from the share that is cut."""
    learning_rates: list[float] | None = setting(None, above=0, at_most=HIGHEST_RATE)
    """A peak learning rate per round. null: learning_rate in all of them."""
    decay: str = setting("cosine", choices=DECAYS)
    """Of the learning rate after the warm-up: "cosine" or "linear"."""
    final_learning_rate_fraction: float = setting(0.1, at_least=0, at_most=1)
    """Learning rate at the end of a round, relative to the peak."""
    warmup_fraction: float = setting(0.05, at_least=0, at_most=1)
    """Share of a round's steps over which the learning rate rises."""
    min_warmup_steps: int = setting(4, at_least=0, at_most=10**6)
    """Steps over which it rises whatever the share, but at most half of a round's."""
    weight_decay: float = setting(0.0, at_least=0, at_most=10)
    """Of AdamW."""
    beta1: float = setting(0.9, at_least=0, below=1)
    """Of AdamW."""
    beta2: float = setting(0.95, at_least=0, below=1)
    """Of AdamW."""
    gradient_clipping: float = setting(1.0, at_least=0, at_most=1e6)
    """Largest norm of the gradient; 0: none."""
    validation_sequences: int = setting(32, at_least=1, at_most=10**7)
    """Sequences of the training text that are reserved for validation."""
    validations: int = setting(4, at_least=1, at_most=10**6)
    """Validations during a round, besides the one at its start; the best weights seen are kept."""
    max_skipped_steps: int = setting(10, at_least=1, at_most=10**6)
    """Steps in a row whose loss or gradient is infinite or not a number, beyond which the job ends."""
    variant: str | None = setting(
        None, longest=60, pattern=r"[^./\\%\s][^/\\%\s]*", words=r"a folder's name without spaces, / \ %, no dot first"
    )
    """Name of a further recovery of the cut that the run in this folder has made: variants/NAME in it, beside the first
    result. null: the run itself."""
    objective: str = setting("distillation", choices=OBJECTIVES)
    """"cross_entropy", "distillation" (towards the parent's distribution) or "mixed"."""
    distillation_weight: float = setting(0.5, above=0, below=1)
    """Share of distillation in the mixed objective."""
    temperature: float = setting(1.0, at_least=0.01, at_most=100)
    """Of both distributions in distillation."""
