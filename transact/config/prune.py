"""What is cut, how much, and how it is chosen: conf/prune/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_one_per_round
from transact.config.setting import setting

SCHEDULE_KINDS = ("linear", "geometric", "cubic")
SPLITS = ("equal", "auto")
ATTENTION_UNITS = ("pairs", "heads", "shared_dims")
PAIR_SCORES = ("norm_product", "token_product", "logit_variance", "taylor", "magnitude", "random")
PAIR_SCOPES = ("model", "layer", "head")
UNIT_SCORES = ("norm", "taylor", "magnitude", "random")
VALUE_CHOICES = ("svd", "pca", *UNIT_SCORES)
CHANNEL_CHOICES = ("obs", *UNIT_SCORES)
REFITS = ("none", "least_squares", "sequential")
ROTARY_CHOICES = ("free", "progression")
TARGETS = ("any", "transformers", "vllm", "llama_cpp", "mlx")


@dataclass(kw_only=True, slots=True)
class MultipleConfig:
    """Dimensions are multiples of these, whatever prune.target takes."""

    head_dim: int | None = setting(None, at_least=2, at_most=2**12)
    """head_dim is a multiple of this even number. Where whole heads are cut it does not count. null: prune.target
    decides."""
    intermediate_size: int | None = setting(None, at_least=1, at_most=2**20)
    """intermediate_size is a multiple of this. null: prune.target decides."""

    def __post_init__(self) -> None:
        is_even = self.head_dim is None or self.head_dim % 2 == 0
        require("prune.multiple.head_dim", self.head_dim, is_even, "it must be even (rotary pairs)")


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """What is cut inside a layer, how it is chosen, and what makes up for it: conf/prune/method/."""

    attention: str = setting("pairs", choices=ATTENTION_UNITS)
    """"pairs" (rotary pairs of q and k, dims of v and o), "heads" (whole heads) or "shared_dims" (the same dims in q,
    k, v and o)."""
    pair_score: str = setting("logit_variance", choices=PAIR_SCORES)
    """What rotary pairs are chosen by: "logit_variance", "norm_product", "token_product", "taylor", "magnitude" or
    "random"."""
    pair_scope: str = setting("model", choices=PAIR_SCOPES)
    """One choice of pairs for the "model", each "layer" or each "head"; the last two give a model that no stock class
    loads."""
    values: str = setting("svd", choices=VALUE_CHOICES)
    """A basis for v and o ("svd", "pca"), or a score of their dims ("norm", "taylor", "magnitude", "random")."""
    channels: str = setting("obs", choices=CHANNEL_CHOICES)
    """What MLP channels are chosen by: "obs" (optimal brain surgeon), "norm", "taylor", "magnitude" or "random"."""
    refit: str = setting("least_squares", choices=REFITS)
    """What makes up for the cut in o_proj and down_proj: "none", "least_squares", or "sequential" (layer after layer,
    on the cut model's own inputs)."""
    ridge: float = setting(0.01, at_least=1e-12, at_most=1e6)
    """Ridge of the least squares, relative to the mean of a Gram matrix's diagonal."""
    gram_gib: float = setting(8.0, above=0, at_most=10**6)
    """GiB of Gram matrices that a rank sums at a time; decides the number of passes over the calibration text."""

    def __post_init__(self) -> None:
        if self.attention == "pairs":
            return
        for name, value, fits in (
            ("values", self.values, self.values in (("norm",) if self.attention == "heads" else UNIT_SCORES)),
            ("pair_scope", self.pair_scope, self.pair_scope == "model"),
            ("refit", self.refit, self.refit != "sequential"),
        ):
            require(f"prune.method.{name}", value, fits, f"prune.method.attention={self.attention} has no such choice")

    def needs_gram(self) -> bool:
        """Whether it looks at more of the activations of the dense checkpoint than their size."""
        basis = self.values in ("svd", "pca") and self.refit != "sequential"
        return basis or self.channels == "obs" or self.refit == "least_squares"

    def needs_gradients(self) -> bool:
        """Whether calibration differentiates the loss, for scores by its first-order change."""
        return "taylor" in (self.pair_score, self.values, self.channels)


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """How much is cut, in how many rounds, and how."""

    remove_fraction: float | None = setting(0.5, above=0, below=1)
    """Share of all parameters of the parent to remove, embeddings counted. null: the dimensions are
    given."""
    head_dim: int | None = setting(None, at_least=2, at_most=2**12)
    """Dims of a head at the end; beside remove_fraction, intermediate_size follows. null: it follows from the fraction,
    or stays."""
    intermediate_size: int | None = setting(None, at_least=1, at_most=2**20)
    """Channels of the MLP at the end, without remove_fraction. null: it follows from the fraction, or stays."""
    split: str = setting("auto", choices=SPLITS)
    """Between attention and MLP: "equal" (the same fraction of both) or "auto" (measured on the training text)."""
    split_candidates: int = setting(8, at_least=1, at_most=1000)
    """Splits that "auto" cuts and measures, at most."""
    rounds: int = setting(1, at_least=1, at_most=1000)
    """Turns of calibrate, plan, slice, recover, evaluate. More than one did not help at the same total of tokens
    (benchmarks/results/quality.md)."""
    rotary_pairs: str = setting("free", choices=ROTARY_CHOICES)
    """"free", or "progression": every s-th pair, which rope_theta alone expresses, so that every converter is right."""
    schedule: str = setting("linear", choices=SCHEDULE_KINDS)
    """How the removed fraction grows over the rounds: "linear", "geometric" or "cubic"."""
    round_shares: list[float] | None = setting(None, at_least=1e-6, at_most=1e6)
    """Relative size of each round's cut, a number per round. null: by the schedule."""
    calibration_sequences: int = setting(128, at_least=1, at_most=10**7)
    """Sequences of the training text that are reserved for calibration."""
    target: str = setting("any", choices=TARGETS)
    """What will serve the model, and so which dimensions it may get: "transformers", "vllm", "llama_cpp", "mlx", or
    "any" (only such as all of these take and run at full speed)."""
    multiple: MultipleConfig = field(default_factory=MultipleConfig)
    """Dimensions are multiples of these, whatever prune.target takes."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """What is cut inside a layer, how it is chosen, and what makes up for it."""

    def __post_init__(self) -> None:
        fraction = self.remove_fraction
        if fraction is None:
            explicit = self.head_dim is not None or self.intermediate_size is not None
            missing = "give it, or else prune.head_dim or prune.intermediate_size"
            require("prune.remove_fraction", fraction, explicit, missing)
        else:
            twice = "prune.intermediate_size is given too; add prune.remove_fraction=null, or leave that out"
            require("prune.remove_fraction", fraction, self.intermediate_size is None, twice)
        require_one_per_round("prune.round_shares", self.round_shares, self.rounds)
        one_set = self.method.attention == "pairs" and self.method.pair_scope == "model"
        progression = "progression needs prune.method.attention=pairs and pair_scope=model"
        require("prune.rotary_pairs", self.rotary_pairs, self.rotary_pairs == "free" or one_set, progression)
        free = fraction is not None and self.head_dim is None
        fixed = "the dimensions that are given leave nothing to measure; add prune.split=equal"
        require("prune.split", self.split, self.split == "equal" or free, fixed)
        heads = self.method.attention == "heads"
        explicit_heads = heads and self.head_dim is not None
        require("prune.head_dim", self.head_dim, not explicit_heads, "prune.method.attention=heads keeps head_dim")
