"""Tasks of lm-eval on a model that is sharded over ranks, which must run every forward together."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from torch import nn

from transact.distributed.process import ProcessGroup
from transact.errors import LONGEST_REASON, one_line
from transact.models.rotary import context_limit
from transact.tracking.progress import Progress
from transact.tracking.view import Silent


@contextmanager
def in_step(module: nn.Module, group: ProcessGroup, fill: Callable[[], object]) -> Iterator[None]:
    """Keep the ranks in step inside this block, however many forwards of `module` each of them runs.

    Collective: before a forward the ranks exchange which of them have one; a rank that has none left takes part with
    `fill`, a forward whose result is not used. All leave the block together. Not for code that exchanges anything
    between its forwards.

    Raises:
        Stopped: on every rank, before the next forward, when any was asked to stop.
    """

    def agree(has_one: bool) -> bool:
        some, asked = group.any(has_one, group.is_asked_to_stop)
        if asked:
            group.stop()
        return some

    # First of all hooks: others gather weights, which is collective.
    hook = module.register_forward_pre_hook(lambda *_: agree(True) and None, prepend=True)
    yield  # no `finally`: after an error the others notice the broken connection, and this rank would wait here
    hook.remove()
    while agree(False):
        fill()


FEWSHOT_SEED = 1234  # lm-eval's own
WHOLE_FILTER = "none"  # lm-eval's name for the filter that takes answers as they are

ANSWER_TOKENS = 256  # that lm-eval lets a model write where a task does not say
Loaded = dict[str, Any]  # name -> what TaskManager.load returns


def unseen_bar(name: str, requests: int) -> Progress:
    """Return a progress bar that is not shown."""
    return Progress(Silent(), name, requests, "requests")


def load_tasks(shots: Mapping[str, int], folders: Sequence[Path]) -> Loaded:
    """Return the tasks with their data, which is downloaded unless it is local or in the cache of datasets.

    Args:
        shots: name of a task or of a group of tasks -> examples in its prompt.
        folders: with YAML files of tasks; lm-eval's own tasks are searched only for names that these lack.

    Raises:
        ValueError: a task is unknown, or cannot be loaded with its data.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    paths = [str(folder) for folder in folders]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(shots) <= set(manager.all_tasks):
        manager = TaskManager(include_path=paths, include_defaults=True)
    loaded = {}
    for name, count in shots.items():
        if name not in manager.all_tasks:
            raise ValueError(f"eval.tasks: {name!r} is a task neither of lm-eval nor of eval.task_folders")
        # Some tasks shuffle answers while loading: with lm-eval's own seeds all machines get its order.
        random.seed(0)
        numpy.random.seed(1234)
        try:
            loaded[name] = manager.load([name])
        except Exception as error:  # noqa: BLE001 - files, network, YAML: whatever failed, the task cannot run
            raise ValueError(f"eval.tasks: {name!r} cannot be loaded: {one_line(error, LONGEST_REASON)}") from None
        for task in loaded[name]["tasks"].values():
            task.set_config(key="num_fewshot", value=count)
    return loaded


def check_tasks(loaded: Loaded, shots: Mapping[str, int]) -> None:
    """Raise ValueError if a task runs code that the model writes, or has fewer examples than its prompts take."""
    for name, tasks in loaded.items():
        for task in tasks["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise ValueError(f"eval.tasks: {name!r} runs code that the model writes, which is not done here")
            count = shots[name]
            if count == 0:
                continue
            examples = list(task.fewshot_docs() or [])
            # Examples that come from the questions themselves are one fewer: the question asked is not shown.
            available = len(examples) - (len(examples) > 0 and examples[0] in list(task.eval_docs)[:1])
            if available < count:
                raise ValueError(f"eval.tasks.{name}={count} is not allowed: there are {available} examples to show")


def answer_tokens(loaded: Loaded) -> dict[str, int]:
    """Return the tokens that each task or group lets the model write at most; 0 where it writes none."""
    return {name: max(map(_answer_tokens, tasks["tasks"].values()), default=0) for name, tasks in loaded.items()}


def _answer_tokens(task: Any) -> int:
    if task.OUTPUT_TYPE != "generate_until":
        return 0
    asked = normalize_gen_kwargs(task.config.generation_kwargs or {}, ANSWER_TOKENS)
    return int(asked["max_gen_toks"])


def run_tasks(
    loaded: Loaded,
    model: SharedModel,
    *,
    limit: int | None,
    chat_template: bool = False,
    done: Callable[[str, Mapping[str, Mapping[str, float]]], None] = lambda name, metrics: None,
    bar: Callable[[str, int], AbstractContextManager[Progress]] = unseen_bar,
) -> dict[str, dict[str, float]]:
    """Run the tasks and return the metrics by task, the same on every rank (collective).

    Args:
        limit: documents of each task, from its first on; None: all.
        chat_template: whether prompts go through the tokenizer's, with each example as a turn of its own.
        done: called with the name of each finished task, or group of tasks, and its metrics by task.
        bar: opens a progress bar for the requests of all ranks, from the task's name and their number.
    """
    found: dict[str, dict[str, float]] = {}
    for name, tasks in loaded.items():
        model.group.stop_if_asked()
        model.bar = partial(bar, name)
        for task in tasks["tasks"].values():  # seeded anew: every model is shown the same examples
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        # No bootstrap estimate of the standard error: for some metrics lm-eval forks this process for it.
        with redirect_stderr(io.StringIO()):  # lm-eval's bars, of every rank
            result = evaluate(
                lm=model,
                task_dict=tasks,
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,
            )
        assert result is not None
        metrics = {task: _metrics(result, task) for task in result["results"]}
        found |= metrics
        done(name, metrics)
    return found


def _metrics(result: Mapping[str, Any], task: str) -> dict[str, float]:
    """Return the metrics of a task, with its numbers of documents and shots.

    `acc,none` is named "acc"; any other filter stays in the name.
    """
    metrics = {
        key.removesuffix(f",{WHOLE_FILTER}"): value
        for key, value in result["results"][task].items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    }
    counts = {"shots": result["n-shot"].get(task), "documents": result["n-samples"].get(task, {}).get("effective")}
    return metrics | {name: value for name, value in counts.items() if value is not None}


@contextmanager
def _counting(module: Any, bar: Progress, own: int, every: int) -> Iterator[None]:
    """Advance a bar by how many of all requests are answered, from the sequences in this rank's forwards.

    Answers that share a forward, and the many forwards of one that is generated, make that an estimate: it never goes
    beyond the number of requests, and ends there.
    """
    seen = told = 0

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal seen, told
        seen += inputs[0].shape[0] if inputs else 0
        done = every * min(seen, own) // max(1, own)
        bar.advance(done - told)
        told = done

    hook = module.register_forward_pre_hook(count)
    yield  # no `finally`: as in `in_step`
    hook.remove()
    bar.advance(every - told)


class SharedModel(HFLM):  # type: ignore[misc]
    """A model of lm-eval of which every rank answers its part of the requests and receives the answers of all.

    On each rank lm-eval runs as if it were alone, so that every rank computes the same metrics.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        group: ProcessGroup,
        *,
        batch_size: int,
        context: int = 2048,
        is_partitioned: bool,
    ) -> None:
        """Wrap a model for lm-eval.

        Args:
            module: a causal language model of transformers.
            context: tokens of a request at most; longer ones lose their beginning.
            is_partitioned: every forward needs all ranks.
        """
        super().__init__(
            pretrained=module,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=min(context, context_limit(module.config.to_dict())),
            softmax_dtype="float32",  # bfloat16 would tie choices that differ
        )
        self._device = group.device  # lm-eval asks a parameter for it, which a partitioned model may not hold
        self.group = group
        self._is_partitioned = is_partitioned
        self.bar: Callable[[int], AbstractContextManager[Progress]] = partial(unseen_bar, "")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().generate_until, requests)

    def _shared(self, answer: Callable[..., list[Any]], requests: list[Any]) -> list[Any]:
        group = self.group
        own = [requests[number] for number in group.shared_out(len(requests))]
        fill = self._fill if self._is_partitioned else lambda: None
        with (
            self.bar(len(requests)) as bar,
            _counting(self.model, bar, len(own), len(requests)),
            in_step(self.model, group, fill),
        ):
            answers = answer(own, disable_tqdm=True) if own else []
        merged: list[Any] = [None] * len(requests)
        for rank, part in enumerate(group.gather(answers)):
            merged[rank :: group.world_size] = part
        return merged

    @torch.no_grad()
    def _fill(self) -> None:
        self.model(torch.zeros(1, 1, dtype=torch.long, device=self._device), use_cache=False)
