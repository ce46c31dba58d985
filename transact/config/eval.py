"""What is measured of the parent and of the final model: conf/eval/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_positive
from transact.config.data import TextConfig


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

    def has_more(self) -> bool:
        """Whether anything is measured besides the perplexity on data.evaluation."""
        return bool(self.texts or self.tasks)
