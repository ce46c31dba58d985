"""What is measured of the parent and of the final model: conf/eval/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_positive
from transact.config.data import TextConfig


@dataclass(kw_only=True, slots=True)
class EfficiencyConfig:
    """Which latencies are measured, of the parent and the pruned model in turn."""

    measured: bool = True
    """Whether latencies are measured at the end, of parent and pruned model; both are loaded whole, by one process."""
    prompt_tokens: list[int] = field(default_factory=lambda: [64])
    """Lengths of the prompts, in tokens."""
    new_tokens: list[int] = field(default_factory=lambda: [32])
    """Tokens that are generated after each of the prompts, 2 or more."""
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    """Prompts that are processed at a time."""
    turns: int = 3
    """How often each model is measured; medians count."""
    max_minutes: float = 30.0
    """Minutes that the measurements may take, on a CPU for example: fewer turns first, then fewer lengths."""
    threads: int = 1
    """Threads on a CPU. With one, the processor time of other programs is not counted."""

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("batch_sizes", 1)):
            values = getattr(self, name)
            fits = bool(values) and min(values) >= least
            require(f"eval.efficiency.{name}", values, fits, f"one number or more, each at least {least}")
        require_positive("eval.efficiency", self, "turns", "threads", "max_minutes")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """What is measured besides the perplexity on data.evaluation: of the parent and of the final model."""

    texts: dict[str, TextConfig] = field(default_factory=dict)
    """Further texts for perplexity, by a name of your own, each described as data.evaluation is."""
    text_sequences: int = 256
    """Sequences of data.sequence_length tokens from each of those texts, at most."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Tasks of lm-eval, by name, with the number of examples in the prompt."""
    task_folders: list[str] = field(default_factory=list)
    """Folders with YAML files of tasks, which come before lm-eval's own."""
    task_limit: int | None = None
    """Documents of each task. null: all of them."""
    task_batch: int = 8
    """Requests of a forward on each rank."""
    task_context: int = 2048
    """Tokens of a request at most, of parent and pruned model alike; longer ones lose their beginning."""
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)
    """Which latencies are measured, of the parent and the pruned model in turn."""

    def __post_init__(self) -> None:
        require_positive("eval", self, "text_sequences", "task_batch", "task_context")
        limit = self.task_limit
        require("eval.task_limit", limit, limit is None or limit > 0, "it must be above 0, or null")
        for name, shots in self.tasks.items():
            require(f"eval.tasks.{name}", shots, shots >= 0, "it must be a number of examples, 0 or more")

    def has_more(self) -> bool:
        """Whether anything is measured besides the perplexity on data.evaluation."""
        return bool(self.texts or self.tasks)
