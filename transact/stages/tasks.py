"""Evaluation of the parent and the final model side by side: perplexity on more texts, and lm-eval tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, replace
from pathlib import Path
from typing import Any

import torch

from transact.config.inputs import NO_METRICS, TextConfig, of_what
from transact.config.outputs import EvalConfig
from transact.data.text import check_text
from transact.engine.engine import open_engine
from transact.files import read_json, write_json
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
    is_alone = job.group.local_rank == 0 and not job.group.is_main
    job.group.on_all(lambda: load() if is_alone else None, may_be_left=True)
    return answers


def check_answers(answers: Mapping[str, int], context: int) -> None:
    """Raise ValueError if the answers of a task leave no room for a prompt. context: tokens of both at most."""
    for name, tokens in answers.items():
        if tokens >= context:
            raise ValueError(
                f"eval.tasks: the answers of {name!r} have up to {tokens:,} tokens, which leaves no room for its "
                f"prompts in {context:,} (eval.task_context, or what the model was made for)"
            )


def evaluate_side_by_side(job: Job, texts: Texts, models: Mapping[str, Path], output: Path, measured: Path) -> None:
    """Write comparison.json: role ("dense", "pruned") -> "texts" and "tasks" by name (collective).

    Perplexity is per token, as that of round_*/evaluation.json, with the number of tokens beside it; "loss_of" and
    "packing" are there where they are not the defaults.

    Args:
        measured: the file that keeps what is measured, as `Measured`.
    """
    known = Measured(job, texts, measured, models)
    turns, missing = _Turns(known.count_missing()), {name for role in models for name in known.missing(role, "tasks")}
    shots = {name: count for name, count in job.config.eval.tasks.items() if name in missing}
    tasks = loaded_tasks(replace(job.config.eval, tasks=shots))
    for role, folder in models.items():
        _evaluate(job, folder, texts, tasks, known, role, turns)
    results = known.results()
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


class Measured:
    """What is known of the models, in a file as soon as it is: no attempt measures what an earlier one has measured.

    A text or a task counts while its settings, its tokens, the files in eval.task_folders and the model are what they
    were. Collective: the same on every rank.

    Args:
        file: role -> "texts" and "tasks" -> name -> "asked" and "found".
        models: their folders, by role.
    """

    def __init__(self, job: Job, texts: Texts, file: Path, models: Mapping[str, Path]) -> None:
        self._group, self._file = job.group, file
        config = job.config.eval
        of_tasks = settings_of_tasks(config)
        settings, tasks = of_tasks.pop("texts"), of_tasks.pop("tasks")
        of_texts = {"sequences": of_tasks.pop("text_sequences")}
        tokens = {name: store.sha256 for name, store in texts.further.items()}
        of_tasks["task_files"] = job.group.on_main(lambda: _states(config.task_folders))
        self._asked: dict[str, dict[str, dict[str, Any]]] = {}
        for role, folder in models.items():
            model = {"model": job.made_of(folder)}
            self._asked[role] = {
                "texts": {name: model | of_texts | {"text": settings[name], "tokens": tokens[name]} for name in tokens},
                "tasks": {name: model | {"shots": shots} | of_tasks for name, shots in tasks.items()},
            }
        self._known: dict[str, Any] = job.group.on_main(self._read)

    def _read(self) -> dict[str, Any]:
        """Return what the file has of what is asked for."""
        try:
            before = read_json(self._file)
            return {
                role: {
                    kind: {
                        name: before[role][kind][name]
                        for name, settings in asked.items()
                        if name in before[role][kind] and before[role][kind][name]["asked"] == settings
                    }
                    for kind, asked in kinds.items()
                }
                for role, kinds in self._asked.items()
            }
        except (OSError, ValueError, TypeError, KeyError):  # none, or damaged: all is measured again
            return {role: {kind: {} for kind in kinds} for role, kinds in self._asked.items()}

    def missing(self, role: str, kind: str) -> list[str]:
        """Return the texts or tasks that are still to be measured. kind: "texts" or "tasks"."""
        return [name for name in self._asked[role][kind] if name not in self._known[role][kind]]

    def count_missing(self) -> int:
        return sum(len(self.missing(role, kind)) for role, kinds in self._asked.items() for kind in kinds)

    def add(self, role: str, kind: str, name: str, found: Any) -> None:
        self._known[role][kind][name] = {"asked": self._asked[role][kind][name], "found": found}
        if self._group.is_main:
            write_json(self._file, self._known)

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the contents of comparison.json; a group of tasks is there with its parts."""
        results = {}
        for role, asked in self._asked.items():
            found = {kind: [self._known[role][kind][name]["found"] for name in asked[kind]] for kind in asked}
            tasks = {task: metrics for each in found["tasks"] for task, metrics in each.items()}
            results[role] = {"texts": dict(zip(asked["texts"], found["texts"], strict=True)), "tasks": tasks}
        return results


def _states(folders: Sequence[str]) -> dict[str, list[int]]:
    """Return size and time of every file in these folders, by name."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


class _Turns:
    """Parts of the stage, one for each text and task of each model, taken as equal."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = count, 0

    def take(self) -> tuple[float, float]:
        """Return where the next part begins and ends, of 1."""
        self._taken += 1
        return (self._taken - 1) / self._count, self._taken / self._count


def _evaluate(
    job: Job, folder: Path, texts: Texts, loaded: dict[str, Any], known: Measured, role: str, turns: _Turns
) -> None:
    """Measure what is missing of one model (collective). loaded: tasks that are missing of any."""
    group, engine_config = job.group, job.config.engine
    tasks = {name: loaded[name] for name in known.missing(role, "tasks")}
    if not tasks and not known.missing(role, "texts"):
        return
    with open_engine(folder, engine_config, group) as engine:
        for name in known.missing(role, "texts"):
            store = texts.further[name]
            count = store.num_sequences
            size = count * store.sequence_length
            with job.progress(f"{role}: {name}", size, share=turns.take()) as bar:
                positions, micro_batch = torch.arange(count), engine_config.micro_batch
                loss = mean_loss(engine, store, positions, micro_batch, group, bar.advance)
            loss_of, packing = job.config.eval.texts[name].loss, job.config.data.packing
            tokens = store.num_targets(torch.arange(count))
            measured: dict[str, Any] = {
                "perplexity": perplexity_of(loss),
                "tokens": tokens,
                **({} if loss_of == "all" else {"loss_of": loss_of}),
                **({} if packing == "stream" else {"packing": packing}),
            }
            shared = trained_on(store, texts.train)
            if shared:
                measured["documents_trained_on"] = shared
            job.say(f"{role}: {name}: perplexity{of_what(measured)} {measured['perplexity']:.2f}")
            known.add(role, "texts", name, measured)
        if tasks:
            from transact.evaluation.tasks import SharedModel, run_tasks

            model = SharedModel(
                engine.module,
                load_tokenizer(folder),
                group,
                batch_size=job.config.eval.task_batch,
                context=job.config.eval.task_context,
                is_partitioned=engine.is_partitioned,
            )

            def done(name: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
                _say_scores(job, role, metrics)
                known.add(role, "tasks", name, metrics)

            run_tasks(
                tasks,
                model,
                limit=job.config.eval.task_limit,
                chat_template=job.config.eval.chat_template,
                done=done,
                bar=_bars_of_tasks(job, role, turns),
            )


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
