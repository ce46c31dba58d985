"""Settings of what comes out: evaluations, the exported model, metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.config.inputs import OWN_NAME, TextConfig
from transact.config.setting import LONGEST_PATH, Allowed, require, setting

TASK_NAME = Allowed(longest=200, pattern=r"[^\s/]+", words="names of tasks")


@dataclass(kw_only=True, slots=True)
class EfficiencyConfig:
    """The latencies that are measured, of the parent and the pruned model in turn."""

    measured: bool = True
    """Whether latencies are measured at the end, of parent and pruned model; both are loaded whole, by one process."""
    prompt_tokens: list[int] = setting(factory=lambda: [64], at_least=1, at_most=2**20, entries=(1, 100))
    """Lengths of the prompts, in tokens."""
    new_tokens: list[int] = setting(factory=lambda: [32], at_least=2, at_most=2**17, entries=(1, 100))
    """Tokens that are generated after each of the prompts, 2 or more."""
    batch_sizes: list[int] = setting(factory=lambda: [1], at_least=1, at_most=2**12, entries=(1, 100))
    """Prompts that are processed at a time."""
    turns: int = setting(3, at_least=1, at_most=1000)
    """How often each model is measured; medians count."""
    max_minutes: float = setting(30.0, above=0, at_most=10_080)
    """Minutes that the measurements may take, on a CPU for example: fewer turns first, then fewer lengths."""
    threads: int = setting(1, at_least=1, at_most=1024)
    """Threads on a CPU. With one, the processor time of other programs is not counted."""
    draft: bool = False
    """Whether the pruned model is tried as the draft of its parent in speculative decoding, on held-out text, with the
    first of prompt_tokens and of new_tokens."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Measurements besides the perplexity on data.evaluation: of the parent and of the final model."""

    texts: dict[str, TextConfig] = setting(factory=dict, entries=(0, 100), keys=OWN_NAME)
    """Further texts for perplexity, by a name of your own, each described as data.evaluation is."""
    text_sequences: int = setting(256, at_least=1, at_most=10**7)
    """Sequences of data.sequence_length tokens from each of those texts, at most."""
    tasks: dict[str, int] = setting(factory=dict, at_least=0, at_most=1000, entries=(0, 100), keys=TASK_NAME)
    """Tasks of lm-eval, by name, with the number of examples in the prompt. They need pip install 'transact[eval]'."""
    task_folders: list[str] = setting(factory=list, longest=LONGEST_PATH, entries=(0, 100))
    """Folders with YAML files of tasks, which come before lm-eval's own."""
    chat_template: bool = False
    """Whether the prompts of tasks go through the chat template of the model's own tokenizer, examples as turns."""
    task_limit: int | None = setting(None, at_least=1, at_most=10**9)
    """Documents of each task. null: all of them."""
    task_batch: int = setting(8, at_least=1, at_most=2**16)
    """Requests of a forward on each rank."""
    task_context: int = setting(2048, at_least=1, at_most=2**20)
    """Tokens of a request at most, the answer's counted, of parent and pruned model alike; longer ones lose their
    beginning."""
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)
    """Which latencies are measured, of the parent and the pruned model in turn."""

    def has_more(self) -> bool:
        """Return whether anything is measured besides the perplexity on data.evaluation."""
        return bool(self.texts or self.tasks)


# As the hub's own client checks names: its letters are those of ASCII, and nothing begins or ends with - or .
HUB_NAME = (
    r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?/[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
)
HUB_NAME_WORDS = "user/name or organisation/name of letters, digits and ._- (no -- or .., none of .- first or last)"
LONGEST_HUB_NAME = 96

EXECUTORCH_BACKENDS = ("none", "xnnpack")
GGUF_TYPES = ("none", "f32", "f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k")


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Exports besides the folder for transformers."""

    gguf: str = setting("none", choices=GGUF_TYPES)
    """"none", or the type of the weights in a file for llama.cpp beside export/: "f32", "f16", "q8_0", "q4_0", or by
    its own quantiser "q4_k_m", "q5_k_m" or "q6_k"."""
    executorch: str = setting("none", choices=EXECUTORCH_BACKENDS)
    """"none", or what a file for ExecuTorch is lowered for: "xnnpack", the CPUs of phones and others."""
    executorch_context: int | None = setting(None, at_least=16, at_most=2**20)
    """Tokens, prompt and answer together, that this file's key-value cache holds. null: as many as the model takes, at
    most 2,048."""
    hub: str | None = setting(None, longest=LONGEST_HUB_NAME, pattern=HUB_NAME, words=HUB_NAME_WORDS)
    """A repository of the Hugging Face hub, user/name, to which the export, its card and the files for other
    software are pushed at the end of the job. null: none. The token is the one of HF_TOKEN or `hf auth login`."""
    hub_private: bool = True
    """Whether that repository is made private. One that exists stays as it is; a public one is pushed to only with
    false."""

    @property
    def executorch_kind(self) -> str:
        """What a file for ExecuTorch is lowered for and, where it was asked for, the context: part of its name."""
        return self.executorch if self.executorch_context is None else f"{self.executorch}_{self.executorch_context}"


MOST_PROFILED = 50  # steps: a trace of one takes megabytes
TRACK_MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Settings of where figures go besides metrics.jsonl."""

    mode: str = setting("auto", choices=TRACK_MODES)
    """W&B: "auto" (online with a key, else offline), "online", "offline" or "disabled"."""
    project: str | None = setting(None, longest=128, pattern=r"[^/\\#?%:]+", words="a name without / \\ # ? % :")
    """The W&B project. null: WANDB_PROJECT, or else transact."""
    run_name: str | None = setting(None, longest=128)
    """The run's name in W&B. null: WANDB_NAME, or else that of the run."""
    notes: str | None = setting(None)
    """W&B notes on the run. null: WANDB_NOTES, or else none."""
    entity: str | None = setting(None, longest=128)
    """The W&B user or team. null: WANDB_ENTITY, or else W&B's default for the key."""
    group: str | None = setting(None, longest=128)
    """The W&B group. null: WANDB_RUN_GROUP, or else none; for the points of a
    sweep the run's name."""
    tags: list[str] = setting(factory=list, entries=(0, 50))
    """W&B tags, besides those that say what the run does; where there are none, those in WANDB_TAGS."""
    progress_seconds: float = setting(60.0, above=0, at_most=86_400)
    """Seconds between two lines of a loop in a log file."""
    report_seconds: float = setting(120.0, at_least=0, at_most=86_400)
    """Seconds at least between two versions of report.html while the run goes on; 0: it is written at the end alone."""
    profile_steps: list[int] | None = setting(None, at_least=1, at_most=10**12, entries=(2, 2))
    """[10,12]: rank 0 records these steps of recovery, counted over all rounds from 1, with PyTorch's profiler, and
    on a GPU what its memory was used for, into profile/ of the run's folder. Such steps are slower. null: none."""

    def __post_init__(self) -> None:
        if self.profile_steps is not None:
            first, last = self.profile_steps
            is_range = first <= last < first + MOST_PROFILED
            words = f"the first and the last of at most {MOST_PROFILED} steps"
            require("track.profile_steps", self.profile_steps, is_range, words)
