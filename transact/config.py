"""The typed configuration of a run. Hydra composes YAML into it; the rest of the code sees only these.

Checks that need nothing but the values are in `__post_init__`; checks that need the model folder, the
text or the number of ranks are in `transact.preflight`. Every message names the field, the value given
and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transact.checks import require, require_at_least, require_choice, require_positive
from transact.launch_config import LaunchConfig

MODES = ("prune", "pretrain", "plan")
TEXT_SOURCES = ("files", "hub", "python_stdlib")
STDLIB_PARTS = ("train", "heldout")
SCHEDULE_KINDS = ("linear", "geometric", "cubic")
SPLITS = ("equal", "auto")
ATTENTION_UNITS = ("pairs", "heads", "shared_dims")
PAIR_SCORES = ("norm_product", "token_product", "logit_variance", "taylor", "magnitude", "random")
PAIR_SCOPES = ("model", "layer", "head")
UNIT_SCORES = ("norm", "taylor", "magnitude", "random")
VALUE_CHOICES = ("svd", "pca", *UNIT_SCORES)
CHANNEL_CHOICES = ("obs", *UNIT_SCORES)
REFITS = ("none", "least_squares", "sequential")
OBJECTIVES = ("cross_entropy", "distillation", "mixed")
DECAYS = ("cosine", "linear")
LOGIT_CHUNK_ELEMENTS = 2**25  # logits that exist at a time while a loss is computed: 128 MiB in float32
DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = ("parent", *DTYPES)
ATTENTION_KINDS = ("sdpa", "eager")
DEVICES = ("auto", "cpu", "cuda")
TRACK_MODES = ("auto", "online", "offline", "disabled")
GGUF_TYPES = ("none", "f16", "q8_0", "q4_0")
ROTARY_CHOICES = ("free", "progression")


def _require_one_per_round(name: str, values: list[float] | None, rounds: int) -> None:
    if values is not None:
        require(name, values, len(values) == rounds, f"one number per round is needed (prune.rounds={rounds})")
        require(name, values, min(values) > 0, "every number must be above 0")


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """The dimensions of a LLaMA, under the names of its config.json.

    `mode=plan` uses them where the weights are not at hand; `mode=pretrain` starts a model of them.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    def to_model_config(self) -> dict[str, Any]:
        """As a config.json dictionary."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {"model_type": "llama", **values}


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which model is pruned."""

    path: str | None = None  # a local folder or a hub id
    revision: str | None = None  # of the hub id
    dtype: str = "float32"  # of the weights in the folders between stages
    export_dtype: str = "parent"
    allow_non_stock: bool = False  # a result that no stock class of transformers loads
    architecture: ArchitectureConfig | None = None

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype, DTYPES)
        require_choice("model.export_dtype", self.export_dtype, EXPORT_DTYPES)


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Where text comes from: local txt, jsonl and parquet files, a hub dataset, or this Python's library."""

    source: str
    files: list[str] = field(default_factory=list)  # paths or glob patterns
    hub_id: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    split: str = "train"
    text_field: str = "text"
    part: str = "train"  # python_stdlib only

    def __post_init__(self) -> None:
        require_choice("data.*.source", self.source, TEXT_SOURCES)
        require_choice("data.*.part", self.part, STDLIB_PARTS)
        require("data.*.files", self.files, self.source != "files" or bool(self.files), "name at least one file")
        require("data.*.hub_id", self.hub_id, self.source != "hub" or bool(self.hub_id), "name a hub dataset")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into sequences."""

    train: TextConfig
    evaluation: TextConfig
    sequence_length: int  # tokens
    evaluation_sequences: int
    token_store: str  # folder shared by all runs

    def __post_init__(self) -> None:
        require_at_least("data", self, 2, "sequence_length")
        require_positive("data", self, "evaluation_sequences")


@dataclass(kw_only=True, slots=True)
class MultipleConfig:
    """Dimensions are multiples of these, so that kernels stay fast."""

    head_dim: int
    intermediate_size: int

    def __post_init__(self) -> None:
        require_positive("prune.multiple", self, "head_dim", "intermediate_size")
        require("prune.multiple.head_dim", self.head_dim, self.head_dim % 2 == 0, "it must be even (rotary pairs)")


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """What is cut inside a layer, how it is chosen, and what makes up for it: conf/prune/method/."""

    attention: str = "pairs"  # pairs of q and k with dims of v and o | whole heads | the same dims in q, k, v and o
    pair_score: str = "logit_variance"
    pair_scope: str = "model"  # layer and head: better choices that no stock model class can express
    values: str = "svd"  # a basis for v and o, or a score of their dims
    channels: str = "obs"
    refit: str = "least_squares"  # of o_proj and down_proj
    ridge: float = 0.01  # relative to the mean of a Gram matrix's diagonal
    gram_gib: float = 8.0  # of Gram matrices that a rank sums at a time; decides the number of passes

    def __post_init__(self) -> None:
        require_choice("prune.method.attention", self.attention, ATTENTION_UNITS)
        require_choice("prune.method.pair_score", self.pair_score, PAIR_SCORES)
        require_choice("prune.method.pair_scope", self.pair_scope, PAIR_SCOPES)
        require_choice("prune.method.values", self.values, VALUE_CHOICES)
        require_choice("prune.method.channels", self.channels, CHANNEL_CHOICES)
        require_choice("prune.method.refit", self.refit, REFITS)
        require_positive("prune.method", self, "ridge", "gram_gib")
        if self.attention == "pairs":
            return
        for name, value, fits in (
            ("values", self.values, self.values in UNIT_SCORES),
            ("pair_scope", self.pair_scope, self.pair_scope == "model"),
            ("refit", self.refit, self.refit != "sequential"),
        ):
            require(f"prune.method.{name}", value, fits, f"prune.method.attention={self.attention} has no such choice")

    def needs_gram(self) -> bool:
        """Whether it looks at more of the activations of the dense checkpoint than their size."""
        basis = self.values in ("svd", "pca") and self.refit != "sequential"
        return basis or self.channels == "obs" or self.refit == "least_squares"


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """How much is cut, in how many rounds, and how."""

    remove_fraction: float | None = None  # of all parameters of the parent
    head_dim: int | None = None  # explicit dimensions instead of a fraction, or head_dim alone beside one
    intermediate_size: int | None = None
    split: str = "equal"  # between attention and MLP: the same fraction of both | measured
    split_candidates: int = 8  # at most, that auto measures
    rounds: int = 1
    rotary_pairs: str = "free"  # progression: every s-th pair, which rope_theta alone expresses
    schedule: str = "linear"
    round_shares: list[float] | None = None  # relative size of each round's cut, instead of a schedule
    calibration_sequences: int = 128
    multiple: MultipleConfig
    method: MethodConfig = field(default_factory=MethodConfig)

    def __post_init__(self) -> None:
        fraction, both = self.remove_fraction, "give it with or without prune.head_dim, or else explicit dimensions"
        require("prune.remove_fraction", fraction, fraction is None or 0 < fraction < 1, "it must be inside (0, 1)")
        if fraction is None:
            explicit = self.head_dim is not None or self.intermediate_size is not None
            require("prune.remove_fraction", fraction, explicit, both)
        else:
            require("prune.remove_fraction", fraction, self.intermediate_size is None, both)
        require_at_least("prune", self, 1, "rounds", "calibration_sequences", "split_candidates")
        _require_one_per_round("prune.round_shares", self.round_shares, self.rounds)
        require_choice("prune.split", self.split, SPLITS)
        require_choice("prune.rotary_pairs", self.rotary_pairs, ROTARY_CHOICES)
        one_set = self.method.attention == "pairs" and self.method.pair_scope == "model"
        progression = "progression needs prune.method.attention=pairs and pair_scope=model"
        require("prune.rotary_pairs", self.rotary_pairs, self.rotary_pairs == "free" or one_set, progression)
        require_choice("prune.schedule", self.schedule, SCHEDULE_KINDS)
        free = fraction is not None and self.head_dim is None
        require("prune.split", self.split, self.split == "equal" or free, "auto needs remove_fraction without head_dim")
        heads = self.method.attention == "heads"
        explicit_heads = heads and self.head_dim is not None
        require("prune.head_dim", self.head_dim, not explicit_heads, "prune.method.attention=heads keeps head_dim")


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


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """What is written besides the folder for transformers."""

    gguf: str = "none"  # a file for llama.cpp, its weights in this type

    def __post_init__(self) -> None:
        require_choice("export.gguf", self.gguf, GGUF_TYPES)


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    mode: str = "auto"
    project: str = "transact"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    progress_seconds: float = 60.0  # between two lines in a log file

    def __post_init__(self) -> None:
        require_choice("track.mode", self.mode, TRACK_MODES)
        require_positive("track", self, "progress_seconds")


@dataclass(kw_only=True, slots=True)
class EfficiencyConfig:
    """Which latencies are measured, of the parent and the pruned model in turn."""

    measured: bool = True  # both models are loaded whole, by one process
    prompt_tokens: list[int] = field(default_factory=lambda: [64])
    new_tokens: list[int] = field(default_factory=lambda: [32])  # generated after each of the prompts
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    turns: int = 3  # each measures every model once; medians count
    threads: int = 1  # on a CPU; with one, the processor time of other programs is not counted

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("batch_sizes", 1)):
            values = getattr(self, name)
            fits = bool(values) and min(values) >= least
            require(f"eval.efficiency.{name}", values, fits, f"one number or more, each at least {least}")
        require_positive("eval.efficiency", self, "turns", "threads")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """What is measured besides the perplexity on data.evaluation: of the parent and of the final model."""

    texts: dict[str, TextConfig] = field(default_factory=dict)  # by a name of your own
    text_sequences: int = 256  # of each text at most
    tasks: dict[str, int] = field(default_factory=dict)  # of lm-eval: name -> examples in the prompt
    task_folders: list[str] = field(default_factory=list)  # with YAML files of tasks, before lm-eval's own
    task_limit: int | None = None  # documents of each task
    task_batch: int = 8  # requests per rank and forward
    task_context: int = 2048  # tokens of a request at most; longer ones lose their beginning
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)

    def __post_init__(self) -> None:
        require_positive("eval", self, "text_sequences", "task_batch", "task_context")
        limit = self.task_limit
        require("eval.task_limit", limit, limit is None or limit > 0, "it must be above 0, or null")
        for name, shots in self.tasks.items():
            require(f"eval.tasks.{name}", shots, shots >= 0, "it must be a number of examples, 0 or more")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a run depends on; written to `config.yaml` of its folder."""

    name: str
    output_dir: str
    share_dir: str | None = None  # of a sweep: where its points share what is the same for all of them
    mode: str = "prune"
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    prune: PruneConfig
    recover: RecoverConfig
    engine: EngineConfig
    track: TrackConfig
    launch: LaunchConfig
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, MODES)
        plain = bool(self.name) and not any(mark in self.name for mark in "/\\ \t\n") and self.name[0] != "."
        require("name", self.name, plain, "a folder name without spaces and slashes")
        require_at_least("run", self, 0, "seed")
        self._check_rounds()

    def _check_rounds(self) -> None:
        for name in ("token_shares", "learning_rates"):
            _require_one_per_round(f"recover.{name}", getattr(self.recover, name), self.prune.rounds)
        if self.mode == "pretrain":
            alone = self.recover.objective == "cross_entropy"
            require("recover.objective", self.recover.objective, alone, "mode=pretrain has no parent to distil from")
            missing = "mode=pretrain needs model.architecture, and no model.path but model=demo_random or alike"
            require("model.architecture", self.model.architecture, self.model.architecture is not None, missing)
        scope = self.prune.method.pair_scope
        stock = scope == "model" or self.model.allow_non_stock or self.mode == "pretrain"
        require(
            "prune.method.pair_scope",
            scope,
            stock,
            "stock LLaMA has one set of rotary frequencies (scope model); model.allow_non_stock=true accepts a result "
            "that only transact loads",
        )
        stock = scope == "model" or not self.eval.tasks
        require("eval.tasks", list(self.eval.tasks), stock, "a model that only transact loads has no cache for them")
        if self.mode != "pretrain":
            require("model.path", self.model.path, bool(self.model.path), "a local folder or a hub id")


# What a finished stage does not depend on: changing these in an existing run folder is no conflict.
FREE_SECTIONS = ("track", "launch", "output_dir", "share_dir", "export")
FREE_SETTINGS = (
    "engine.collective_timeout_minutes",
    "engine.reduce_bucket_elements",
    "engine.checkpoint_every.minutes",
    "engine.checkpoint_every.tokens",
    "prune.method.gram_gib",
    "recover.max_skipped_steps",
    # What may have to change after a long run, when its last stages are short of memory.
    "eval.task_batch",
    "eval.efficiency.measured",
    "eval.efficiency.batch_sizes",
)
