"""Evaluation of the parent and the final model side by side: perplexity on more texts, and lm-eval tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Any

import torch

from transact.config.inputs import NO_METRICS, TextConfig, of_what
from transact.config.outputs import EvalConfig
from transact.data.text import check_text
from transact.engine.engine import open_engine
from transact.files import write_json
from transact.models.stock import load_tokenizer
from transact.stages.evaluate import mean_loss, perplexity_of
from transact.stages.job import Job
from transact.stages.texts import Texts, trained_on
from transact.tracking.progress import Progress
from transact.tracking.result_table import score_text

OWN_TASKS = Path(__file__).parents[1] / "assets" / "tasks"
# Settings of a text that older runs have not recorded, and what these did: a finished run stays finished.
LATER_SETTINGS = {"messages_field": None, "text_template": None, "loss": "all", "filter": None}


def check_evaluation(config: EvalConfig) -> None:
    """Check the texts and tasks of eval without loading anything.

    Raises:
        ValueError: a text or a folder of tasks is not found, or lm-eval is not installed.
    """
    for name, text in config.texts.items():
        check_text(text, f"eval.texts.{name}")
    for folder in config.task_folders:
        if not Path(folder).is_dir():
            raise ValueError(f"eval.task_folders: {folder!r} is no folder")
    if config.tasks and importlib.util.find_spec("lm_eval") is None:
        raise ValueError("eval.tasks needs lm-eval: pip install 'transact[eval]'")


def loaded_tasks(config: EvalConfig) -> dict[str, Any]:
    """Load the tasks of eval.tasks.

    Raises:
        ValueError: a task is unknown, or its data cannot be loaded.
    """
    if not config.tasks:
        return {}
    from transact.evaluation.tasks import load_tasks

    return load_tasks(config.tasks, [OWN_TASKS, *map(Path, config.task_folders)])


def prepare_tasks(job: Job) -> dict[str, int]:
    """Download what the tasks need, once on every machine, and check that they can be run (collective).

    Returns:
        The tokens of each task's answers at most, for `check_answers`.

    Raises:
        ValueError: a task is unknown, its data cannot be loaded, or it cannot be run.
    """
    config = job.config.eval
    if not config.tasks:
        return {}

    def load() -> dict[str, int]:
        from transact.evaluation.tasks import answer_tokens, check_tasks

        loaded = loaded_tasks(config)
        check_tasks(loaded, config.tasks)
        return answer_tokens(loaded)

    answers = job.group.on_main(load, may_be_left=True)
    check_answers(answers, config.task_context)
    # Other machines may have a cache of their own; after rank 0, so that a shared one is filled once.
    job.group.everywhere(lambda: load() if job.group.local_rank == 0 and not job.group.is_main else None)
    return answers


def check_answers(answers: Mapping[str, int], context: int) -> None:
    """Raise ValueError if the answers of a task leave no room for a prompt. context: tokens of both at most."""
    for name, tokens in answers.items():
        if tokens >= context:
            raise ValueError(
                f"eval.tasks: the answers of {name!r} have up to {tokens:,} tokens, which leaves no room for its "
                f"prompts in {context:,} (eval.task_context, or what the model was made for)"
            )


def evaluate_side_by_side(job: Job, texts: Texts, models: Mapping[str, Path], output: Path) -> None:
    """Write comparison.json: role ("dense", "pruned") -> "texts" and "tasks" by name (collective).

    Perplexity is per token, as that of round_*/evaluation.json, with the number of tokens beside it; "loss_of" and
    "packing" are there where they are not the defaults.
    """
    first = next(iter(models.values()))  # they share the tokenizer
    tasks = loaded_tasks(job.config.eval)
    tokenizer = load_tokenizer(first)
    turns = _Turns(len(models) * (len(texts.further) + len(tasks)))
    results = {role: _evaluate(job, folder, texts, tasks, tokenizer, role, turns) for role, folder in models.items()}
    job.tracker.summary(
        {
            f"eval/{kind}/{name}/{metric}_{role}": value
            for role, result in results.items()
            for kind, found in result.items()
            for name, metrics in found.items()
            for metric, value in metrics.items()
        }
    )
    if job.group.is_main:
        write_json(output, results)


def settings_of_tasks(config: EvalConfig) -> dict[str, Any]:
    """Return the settings that comparison.json depends on."""
    return {
        "texts": {name: _settings_of_text(text) for name, text in config.texts.items()},
        "text_sequences": config.text_sequences,
        "tasks": dict(config.tasks),
        "task_folders": list(config.task_folders),
        "task_limit": config.task_limit,
        "task_context": config.task_context,
        **({"chat_template": True} if config.chat_template else {}),  # as `LATER_SETTINGS`
    }


def _settings_of_text(text: TextConfig) -> dict[str, Any]:
    """Return the settings of a text, as a finished run recorded them that is asked for more."""
    settings = asdict(text)
    del settings["tokenizer"]  # the model's own, wherever it lies
    return {name: value for name, value in settings.items() if LATER_SETTINGS.get(name, MISSING) != value}


class _Turns:
    """Parts of the stage, one for each text and task of each model, taken as equal."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = count, 0

    def take(self) -> tuple[float, float]:
        """Return where the next part begins and ends, of 1."""
        self._taken += 1
        return (self._taken - 1) / self._count, self._taken / self._count


def _evaluate(
    job: Job,
    folder: Path,
    texts: Texts,
    tasks: dict[str, Any],
    tokenizer: Any,
    role: str,
    turns: _Turns,
) -> dict[str, dict[str, Any]]:
    group, engine_config = job.group, job.config.engine
    measured, found = {}, {}
    with open_engine(folder, engine_config, group) as engine:
        for name, store in texts.further.items():
            count = store.num_sequences
            size = count * store.sequence_length
            with job.progress(f"{role}: {name}", size, share=turns.take()) as bar:
                positions, micro_batch = torch.arange(count), engine_config.micro_batch
                loss = mean_loss(engine, store, positions, micro_batch, group, bar.advance)
            loss_of, packing = job.config.eval.texts[name].loss, job.config.data.packing
            tokens = store.num_targets(torch.arange(count))
            measured[name] = {
                "perplexity": perplexity_of(loss),
                "tokens": tokens,
                **({} if loss_of == "all" else {"loss_of": loss_of}),
                **({} if packing == "stream" else {"packing": packing}),
            }
            shared = trained_on(store, texts.train)
            if shared:
                measured[name]["documents_trained_on"] = shared
            job.say(f"{role}: {name}: perplexity{of_what(measured[name])} {measured[name]['perplexity']:.2f}")
        if tasks:
            from transact.evaluation.tasks import SharedModel, run_tasks

            model = SharedModel(
                engine.module,
                tokenizer,
                group,
                batch_size=job.config.eval.task_batch,
                context=job.config.eval.task_context,
                is_partitioned=engine.is_partitioned,
            )
            found = run_tasks(
                tasks,
                model,
                limit=job.config.eval.task_limit,
                chat_template=job.config.eval.chat_template,
                done=lambda _, metrics: _say_scores(job, role, metrics),
                bar=_bars_of_tasks(job, role, turns),
            )
    return {"texts": measured, "tasks": found}


def _bars_of_tasks(job: Job, role: str, turns: _Turns) -> Callable[[str, int], Progress]:
    """Return a function that makes the progress bar of a task.

    A task with several kinds of requests has a bar for each, in the same part of the stage.
    """
    parts: dict[str, tuple[float, float]] = {}

    def bar(name: str, requests: int) -> Progress:
        if name not in parts:
            parts[name] = turns.take()
        return job.progress(f"{role}: {name}", requests, unit="requests", share=parts[name], in_step=False)

    return bar


def _say_scores(job: Job, role: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
    for task, found in metrics.items():
        scores = ", ".join(f"{name} {score_text(name, found)}" for name in found if name not in NO_METRICS)
        counted = f" ({found['documents']:,.0f} documents)" if "documents" in found else ""
        job.say(f"{role}: {task}: {scores or 'done'}{counted}")
