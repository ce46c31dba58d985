"""Settings of what is cut and how, and of how the loss is recovered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transact.config.setting import LONGEST_PATH, require, require_one_per_round, setting

SCHEDULE_KINDS = ("linear", "geometric", "cubic")
SPLITS = ("equal", "auto")
SHAPES = ("uniform", "layers")
ATTENTION_UNITS = ("pairs", "heads", "shared_dims")
PAIR_SCOPES = ("model", "layer", "head")
PAIR_GAINS = ("auto", "none", "attention")
RIDGE_UNITS = ("mean", "median")
REFITS = ("none", "least_squares", "sequential")
ROTARY_CHOICES = ("free", "progression")
TARGETS = ("any", "transformers", "vllm", "llama_cpp", "mlx", "gptq")


def criterion(default: str) -> Any:
    """Declare a setting that names a criterion.

    Only transact/pruning/criteria.py knows which there are, so the name itself is checked in `stages.preflight`.
    """
    return setting(default, longest=60, pattern=r"[a-z][a-z0-9_]*", words="the name of a criterion (lower case)")


@dataclass(kw_only=True, slots=True)
class MultipleConfig:
    """Multiples that the cut dimensions must be of, whatever prune.target takes."""

    head_dim: int | None = setting(None, at_least=2, at_most=2**12)
    """head_dim is a multiple of this even number. Where whole heads are cut it does not count. null: prune.target
    decides."""
    intermediate_size: int | None = setting(None, at_least=1, at_most=2**20)
    """intermediate_size is a multiple of this. null: prune.target decides."""
    num_key_value_heads: int = setting(1, at_least=1, at_most=2**12)
    """Where key-value heads are cut, what stays is a multiple of this: of the GPUs that will share the model, say.
    prune.split=auto rounds up to it. The parent's number, or more, keeps all heads. It does not bind
    prune.shapes=layers."""

    def __post_init__(self) -> None:
        is_even = self.head_dim is None or self.head_dim % 2 == 0
        require("prune.multiple.head_dim", self.head_dim, is_even, "it must be even (rotary pairs)")


LIMITS = ("parameters", "kv_bytes_per_token", "weight_bytes", "memory_bytes", "latency_ms")
LATENCY_PHASES = ("prefill", "decode")


@dataclass(kw_only=True, slots=True)
class BudgetConfig:
    """What the cut model may take at most where it is served: a number, or up to 1 a share of what the parent takes."""

    parameters: float | None = setting(None, above=0, at_most=10**15)
    """All parameters, embeddings counted. null: no limit."""
    kv_bytes_per_token: float | None = setting(None, above=0, at_most=10**12)
    """Bytes of a token in the KV cache of all layers. null: no limit."""
    weight_bytes: float | None = setting(None, above=0, at_most=10**16)
    """Bytes of all weights. null: no limit."""
    memory_bytes: float | None = setting(None, above=0, at_most=10**16)
    """Bytes of all weights and of the KV cache of prune.budget.context_tokens and prune.budget.batch_size. null: no
    limit."""
    latency_ms: float | None = setting(None, above=0, at_most=10**9)
    """Milliseconds of prune.budget.latency_phase, by prune.budget.latency_table; up to 1 too it is a share of what the
    parent takes. null: no limit."""
    latency_table: str | None = setting(None, longest=LONGEST_PATH)
    """What `transact efficiency MODEL --calibrate FILE` wrote on the machine that will serve the model. null:
    no latency is limited."""
    latency_phase: str = setting("decode", choices=LATENCY_PHASES)
    """"decode" (a token of every sequence) or "prefill" (the prompt)."""
    context_tokens: int = setting(4096, at_least=1, at_most=10**9)
    """Tokens of each sequence in the KV cache, for memory_bytes."""
    batch_size: int = setting(1, at_least=1, at_most=10**6)
    """Sequences at a time, for memory_bytes."""
    bits_per_weight: float = setting(16.0, above=0, at_most=64)
    """Bits of a weight where the model is served, on average: 16 for the exported folder in bfloat16, 8.5 for GGUF's
    q8_0, about 5 for its q4_0."""
    bits_per_cached: float = setting(16.0, above=0, at_most=64)
    """Bits of an element of the KV cache."""

    def __post_init__(self) -> None:
        is_whole = (self.latency_ms is None) == (self.latency_table is None)
        together = "prune.budget.latency_ms and prune.budget.latency_table belong together"
        require("prune.budget.latency_table", self.latency_table, is_whole, together)

    def limits_cache(self) -> bool:
        """Return whether a limit counts the KV cache."""
        return self.kv_bytes_per_token is not None or self.memory_bytes is not None

    def asked(self) -> dict[str, float]:
        """Return the limits that are given, by name."""
        given = {name: getattr(self, name) for name in LIMITS}
        return {name: limit for name, limit in given.items() if limit is not None}


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """The method: what is cut inside a layer, how it is chosen, and what makes up for it. See conf/prune/method/."""

    attention: str = setting("pairs", choices=ATTENTION_UNITS)
    """"pairs" (rotary pairs of q and k, dims of v and o), "heads" (whole heads) or "shared_dims" (the same dims in q,
    k, v and o)."""
    pair_score: str = criterion("logit_variance")
    """What rotary pairs are chosen by: "logit_variance", "norm_product", "token_product", "taylor", "magnitude" or
    "random"."""
    pair_scope: str = setting("model", choices=PAIR_SCOPES)
    """One choice of pairs for the "model", each "layer" or each "head"; the last two give a folder with code of its
    own, which transformers loads with trust_remote_code=True."""
    pair_gains: str = setting("auto", choices=PAIR_GAINS)
    """What makes up for the rotary pairs that are cut: "none", "attention" (a scale and a phase of the queries of
    each pair that stays, by least squares on the logits where attention looks; in the last round that
    cuts pairs), or "auto" ("attention" where the model takes it: not behind a norm of queries)."""
    values: str = criterion("svd")
    """A basis for v and o ("svd", "pca"), or a score of their dims ("norm", "taylor", "magnitude", "random")."""
    channels: str = criterion("norm")
    """What MLP channels are chosen by: "norm", "obs" (optimal brain surgeon), "taylor", "magnitude" or "random"."""
    refit: str = setting("sequential", choices=REFITS)
    """What makes up for the cut in o_proj and down_proj: "none", "least_squares", or "sequential" (and then
    corrected, layer after layer, so that the cut model's residual stream comes nearer to the dense model's)."""
    ridge: float = setting(0.01, at_least=1e-12, at_most=1e6)
    """Ridge of the least squares, relative to prune.method.ridge_unit."""
    ridge_unit: str = setting("median", choices=RIDGE_UNITS)
    """What the ridge is relative to: the "median" or the "mean" of a Gram matrix's diagonal. On large models a few
    channels are huge at the first token of every sequence, and own the mean."""
    gram_gib: float | None = setting(None, above=0, at_most=10**6)
    """GiB of Gram matrices that a rank sums at a time; decides the number of passes over the calibration text. null:
    what is free on the rank that has the least."""

    def __post_init__(self) -> None:
        if self.attention == "pairs":
            return
        for name, value, fits in (
            ("values", self.values, self.values == "norm" if self.attention == "heads" else not self.has_basis()),
            ("pair_scope", self.pair_scope, self.pair_scope == "model"),
            ("pair_gains", self.pair_gains, self.pair_gains != "attention"),
        ):
            require(f"prune.method.{name}", value, fits, f"prune.method.attention={self.attention} has no such choice")

    def has_basis(self) -> bool:
        """Return whether the values get a basis from the data, instead of losing dims by their scores."""
        return self.values in ("svd", "pca")

    def needs_gram(self) -> bool:
        """Return whether the method needs Gram matrices of the dense checkpoint's activations, not only their norms."""
        return self.has_basis() or self.channels == "obs" or self.refit != "none"


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Settings of how much is cut, in how many rounds, and how."""

    remove_fraction: float | None = setting(0.5, above=0, below=1)
    """Share of all parameters of the parent to remove, embeddings counted. null: the dimensions are given, or limits
    (prune.budget)."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Limits instead of remove_fraction, one or several: the largest dimensions that meet all of them."""
    head_dim: int | None = setting(None, at_least=2, at_most=2**12)
    """Dims of a head at the end; beside remove_fraction or prune.budget, intermediate_size follows. null: it follows
    from these, or stays."""
    intermediate_size: int | None = setting(None, at_least=1, at_most=2**20)
    """Channels of the MLP at the end, without remove_fraction and prune.budget. null: it follows from these, or
    stays."""
    split: str = setting("auto", choices=SPLITS)
    """Between attention and MLP: "equal" (the same fraction of both) or "auto" (measured on the training text; where
    prune.budget limits the KV cache or memory, and the method refits, with three quarters and half of the key-value
    heads too)."""
    split_candidates: int = setting(8, at_least=1, at_most=1000)
    """Splits that "auto" cuts and measures of each number of key-value heads (of whole heads: of all), at most."""
    shapes: str = setting("uniform", choices=SHAPES)
    """"uniform" (all layers are alike, which every software loads) or "layers" (each keeps an MLP width and key-value
    heads of its own, at the same parameters: measured in the first round, and reached in the last)."""
    shape_evaluations: int | None = setting(None, at_least=1, at_most=10**6)
    """Shapes that "layers" measures on validation text, at most: two for each layer before it changes several at once,
    then three for each layer in every round of its search. null: eight for each layer."""
    rounds: int = setting(1, at_least=1, at_most=1000)
    """Turns of calibrate, select, slice, recover, evaluate. More than one did not help the default at the same total of
    tokens (docs/results.md)."""
    rotary_pairs: str = setting("free", choices=ROTARY_CHOICES)
    """"free", or "progression": every s-th pair, which rope_theta alone expresses, so that every converter is right.
    s is above 1 only in a round that keeps about half of the pairs or fewer."""
    schedule: str = setting("linear", choices=SCHEDULE_KINDS)
    """How the removed fraction grows over the rounds: "linear", "geometric" or "cubic"."""
    round_shares: list[float] | None = setting(None, at_least=1e-6, at_most=1e6)
    """Relative size of each round's cut, a number per round. null: by the schedule."""
    calibration_sequences: int = setting(128, at_least=1, at_most=10**7)
    """Sequences of the training text that are reserved for calibration."""
    target: str = setting("any", choices=TARGETS)
    """What will serve the model, and so which dimensions it may get: "transformers", "vllm", "llama_cpp", "mlx",
    "gptq" (vLLM with 4-bit weights in groups of 128), or "any" (only such as all of these but the last take and run at
    full speed; of layers that differ it says nothing)."""
    multiple: MultipleConfig = field(default_factory=MultipleConfig)
    """Dimensions are multiples of these, whatever prune.target takes."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """What is cut inside a layer, how it is chosen, and what makes up for it."""

    def __post_init__(self) -> None:
        fraction, size = self.remove_fraction, self.intermediate_size
        limits = [f"prune.budget.{name}" for name in self.budget.asked()]
        if fraction is None:
            missing = "give it, or else prune.head_dim, prune.intermediate_size or a limit of prune.budget"
            require("prune.remove_fraction", fraction, bool(self.head_dim or size or limits), missing)
            require("prune.intermediate_size", size, not (size and limits), f"it follows from {' and '.join(limits)}")
        else:
            twice = "prune.intermediate_size is given too; add prune.remove_fraction=null, or leave that out"
            require("prune.remove_fraction", fraction, size is None, twice)
            instead = f"{' and '.join(limits)} is given too; add prune.remove_fraction=null, or leave that out"
            require("prune.remove_fraction", fraction, not limits, instead)
        require_one_per_round("prune.round_shares", self.round_shares, self.rounds)
        one_set = self.method.attention == "pairs" and self.method.pair_scope == "model"
        progression = "progression needs prune.method.attention=pairs and pair_scope=model"
        require("prune.rotary_pairs", self.rotary_pairs, self.rotary_pairs == "free" or one_set, progression)
        free = (fraction is not None or bool(limits)) and self.head_dim is None
        fixed = "the dimensions that are given leave nothing to measure; add prune.split=equal"
        require("prune.split", self.split, self.split == "equal" or free, fixed)
        measurable = self.method.refit != "none" and self.method.attention == "pairs"
        needs = "layers needs prune.method.attention=pairs and a prune.method.refit"
        require("prune.shapes", self.shapes, self.shapes == "uniform" or measurable, needs)
        heads = self.method.attention == "heads"
        explicit_heads = heads and self.head_dim is not None
        require("prune.head_dim", self.head_dim, not explicit_heads, "prune.method.attention=heads keeps head_dim")


RECOVERY_METHODS = ("full", "lora")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OBJECTIVES = ("cross_entropy", "distillation", "mixed")
DECAYS = ("cosine", "linear")
HIGHEST_RATE = 1e10  # far beyond use; training itself detects a rate below it that diverges
VARIANTS = "variants"  # folder in a run's folder; each folder in it is a further recovery of the run's cut
RESERVED_SPREAD = 8  # reserved sequences are drawn from so many times their number, at the beginning of the text
LOGIT_CHUNK_ELEMENTS = 2**25  # logits that exist at a time while a loss is computed: 128 MiB in float32


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters, with which recover.method=lora trains (docs/recovery.md)."""

    rank: int = setting(32, at_least=1, at_most=2**16)
    """Of the product that is added to each weight. More learns more, and takes more memory."""
    alpha: float = setting(32.0, above=0, at_most=1e6)
    """The product is multiplied by alpha / rank, so that one learning rate suits all ranks."""
    targets: list[str] = setting(factory=lambda: list(PROJECTIONS), choices=PROJECTIONS, entries=(1, len(PROJECTIONS)))
    """The projections that have an adapter, in every layer."""

    def __post_init__(self) -> None:
        once = len(set(self.targets)) == len(self.targets)
        require("recover.lora.targets", self.targets, once, "each projection is named once")


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """Continued pretraining after each cut."""

    method: str = setting("full", choices=RECOVERY_METHODS)
    """What is trained: "full" (all weights) or "lora" (low-rank adapters, merged into the weights at the end of each
    round: for a GPU that has no room for the optimizer of all weights)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters of recover.method=lora."""
    tokens: int = setting(524_288, at_least=0, at_most=10**15)
    """Tokens of training over all rounds; 0: none."""
    token_shares: list[float] | None = setting(None, at_least=1e-6, at_most=1e6)
    """Relative number of tokens of each round. null: equal."""
    batch_sequences: int | None = setting(None, at_least=1, at_most=2**24)
    """Sequences of an optimizer step over all ranks, the same on any number of them. null: it follows from the tokens
    of recovery when the run begins (docs/recovery.md)."""
    learning_rate: float | None = setting(None, above=0, at_most=HIGHEST_RATE)
    """Peak learning rate, where recover.learning_rates gives none. null: it follows from the parent's size, from the
    share that is cut, and from recover.method."""
    learning_rates: list[float] | None = setting(None, above=0, at_most=HIGHEST_RATE)
    """A peak learning rate per round, instead of recover.learning_rate. null: that one in all of them."""
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
    """Validations during a round, evenly spread, besides a few early ones that find a rate which does damage; the best
    weights seen are kept."""
    rate_after_rise: float = setting(0.5, above=0, at_most=1)
    """Factor of the learning rate, for the rest of a round, each time a validation finds the loss clearly above the
    lowest so far; training goes on from the best weights. 1: it goes on as it was."""
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

    @property
    def batch(self) -> int:
        """Return recover.batch_sequences as a number; null is 1 without recovery, and must be settled with it."""
        assert self.batch_sequences is not None or not self.tokens
        return self.batch_sequences or 1
