"""The chain of stages: what one rank does from the first evaluation to the exported model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transact.engine.engine import Engine
from transact.engine.memory import sums_grams_in_calibration
from transact.files import read_json, temporary_name
from transact.geometry import Geometry
from transact.models.folder import download, geometry_of, is_local
from transact.models.rotary import context_limit
from transact.pruning.selection import Selection
from transact.rounds import Outline, Round, Stage, towards
from transact.runs.run_folder import CHECKPOINTS
from transact.stages.advice import run_warnings
from transact.stages.calibrate import SummedGrams, calibrate, collect_gram_files
from transact.stages.efficiency import record_latency_table
from transact.stages.evaluate import evaluate, measure_ahead, report
from transact.stages.finish import finish
from transact.stages.initialise import initialise
from transact.stages.job import Job, StageUndone
from transact.stages.overlap import measure_overlap
from transact.stages.parent import Record, began_with, judge_folder, judge_weights, pinned, recognise
from transact.stages.recover.adaptive import mixture_before
from transact.stages.recover.checkpoints import clear_checkpoints
from transact.stages.recover.loop import recover
from transact.stages.select import select
from transact.stages.shapes import choose_shapes, read_shapes
from transact.stages.sharing import (
    Work,
    evaluation_identity,
    gram_identity,
    remove_shared_grams,
    shared,
    summed_statistics,
)
from transact.stages.slice import slice_stage
from transact.stages.split import choose_split, read_split
from transact.stages.tasks import check_answers, prepare_tasks
from transact.stages.texts import Texts, open_further_texts, prepare_texts, record_texts

MOST_REPAIRS = 3  # of one stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The inputs of `mode=prune`, ready before its first stage."""

    parent: Path
    record: Record  # of the parent, for run.json
    texts: Texts


def prepare(job: Job) -> Prepared | None:
    """Download and tokenise, before anything is written to the run folder (collective).

    Raises:
        ValueError: the request cannot be met.
    """
    if job.config.mode == "pretrain":
        return None  # the tokenizer does not exist yet
    answers = prepare_tasks(job)  # first: tasks are small, and a wrong name is reported before the parent is downloaded
    parent, record = fetch(job)
    check_answers(answers, min(job.config.eval.task_context, context_limit(read_json(parent / "config.json"))))
    job.group.everywhere(lambda: _check_same_dimensions(job, parent))
    texts = prepare_texts(job, parent)
    texts = replace(texts, further=open_further_texts(job, parent, texts.train))
    held_out = {"data.evaluation": texts.evaluation}
    held_out |= {f"eval.texts.{name}": store for name, store in texts.further.items()}
    texts = replace(texts, overlap=measure_overlap(job, held_out, texts.trained))
    return Prepared(parent=parent, record=record, texts=texts)


def _check_same_dimensions(job: Job, parent: Path) -> None:
    """Raise ValueError unless the parent's dimensions are those that the rounds were solved with."""
    if geometry_of(parent) != job.outline.parent:
        raise ValueError(f"model.path={job.config.model.path!r} was changed while it was read: start the run again")


def run_chain(job: Job, prepared: Prepared | None) -> dict[str, Any]:
    """Run the chain to its end and return the contents of result.json.

    Where a file of a finished stage is damaged, the chain starts again: it skips what is finished and redoes the stage.

    Raises:
        RuntimeError: the files of a stage are damaged again and again.
    """
    undone: Counter[str] = Counter()
    while True:
        try:
            result = pretrain(job) if prepared is None else prune(job, prepared)
            job.forget_models()
            return result
        except StageUndone as again:
            job.forget_models()
            undone[again.stage] += 1
            if undone[again.stage] > MOST_REPAIRS:
                raise RuntimeError(
                    f"{again.stage} was done {MOST_REPAIRS} times, and its files do not stay as they are written: the "
                    "disk or the file system is failing"
                ) from None


def prune(job: Job, prepared: Prepared) -> dict[str, Any]:
    """Run the stages of `mode=prune` and return the contents of result.json."""
    parent, texts = prepared.parent, prepared.texts
    record_texts(job, texts)
    record_latency_table(job)
    job.announce(job.outline)
    for warning in run_warnings(job.config, job.outline):
        job.say(f"warning: {warning}")
    dense = job.round(0).evaluation
    job.stage(Stage("evaluate", 0), dense, lambda: evaluate_dense(job, prepared, dense))
    model_folder, rounds = prune_rounds(job, prepared)
    return finish(job, texts, model_folder, parent, rounds)


def prune_rounds(job: Job, prepared: Prepared) -> tuple[Path, Sequence[Round]]:
    """Run every round and return the last model folder, and the rounds as they were done."""
    rounds, model_folder = job.outline.rounds, prepared.parent
    for index in range(len(rounds)):
        rounds, sliced = cut_round(job, prepared, rounds, index, model_folder)
        model_folder = recover_round(job, prepared, rounds[index], sliced)
        if index > 0:
            remove_superseded(job, rounds[index - 1])
    return model_folder, rounds


def remove_superseded(job: Job, each: Round) -> None:
    """Remove the model folders of a round once the next one has its own: only a repair or a variant would read them."""
    files = job.round(each.number)
    if job.config.keep_rounds == "last" and job.group.is_main:
        job.folder.supersede(files.sliced, files.recovered)


def cut_round(
    job: Job, prepared: Prepared, rounds: tuple[Round, ...], index: int, model_folder: Path
) -> tuple[tuple[Round, ...], Path]:
    """Calibrate and slice, the first half of a round.

    Returns:
        The rounds, which the split and the shapes that the first one measures may have changed, and the sliced model
        folder.
    """
    calibrate_round(job, prepared, rounds[index].number, model_folder)
    measured = None
    if index == 0 and job.outline.candidates:
        measured = measure_split(job, prepared.texts, prepared.parent)
        rounds = _announced(job, towards(job.config, job.outline, measured.target))
    orders = None
    if index == 0 and job.config.prune.shapes == "layers":
        start = rounds[-1].geometry
        shape, orders = find_shapes(job, prepared, start, model_folder)
        rounds = _announced(job, towards(job.config, job.outline, start, shape))
    return rounds, slice_round(job, prepared, rounds[index], model_folder, measured, orders)


def _announced(job: Job, chosen: Outline) -> tuple[Round, ...]:
    job.announce(chosen)
    return chosen.rounds


def evaluate_dense(job: Job, prepared: Prepared, output: Path) -> None:
    """Evaluate the dense parent; all points of a sweep share the result."""
    texts, dense = prepared.texts, {"dense": prepared.parent}
    identity = evaluation_identity(texts, prepared.record["files"])
    shared(job, "evaluation", identity, output, lambda: evaluate(job, texts, dense, output))
    report(job, output, round_number=0, tokens=0)


def calibrate_round(job: Job, prepared: Prepared, number: int, model_folder: Path) -> None:
    """Collect the statistics of a round, and the Gram matrices if the method needs them.

    Those of the parent are shared by all points of a sweep.
    """
    texts, files = prepared.texts, job.round(number)
    summed: SummedGrams | None = None

    def make(kind: str, output: Path, work: Work) -> dict[str, Any] | None:
        if number > 1:
            return work()
        identity = gram_identity(job.config, texts, prepared.record["files"])
        if kind == "statistics":
            identity |= summed_statistics(job.config, geometry_of(model_folder))
        return shared(job, kind, identity, output, work)

    def sum_statistics() -> None:
        nonlocal summed
        with_grams = (
            sums_grams_in_calibration(job.config, number)
            and _needs_grams(job, number)
            and not job.is_finished(Stage("gram", number))
        )
        summed = calibrate(job, texts, model_folder, files.statistics, with_grams=with_grams)

    def write_grams() -> dict[str, Any]:
        return collect_gram_files(job, texts, model_folder, files.grams, summed)

    job.stage(
        Stage("calibrate", number),
        files.statistics,
        lambda: make("statistics", files.statistics, sum_statistics),
        reads=[model_folder],
    )
    if _needs_grams(job, number):
        job.stage(
            Stage("gram", number),
            files.grams,
            lambda: make("gram", files.grams, write_grams),
            reads=[model_folder],
        )


def _needs_grams(job: Job, number: int) -> bool:
    """Return whether a stage of the round will read Gram matrices (collective).

    They are removed once the round is sliced, and nothing needs them after that but a repair.
    """
    kinds = ("split", "shapes", "slice")
    readers = [each for each in job.outline.stages if each.round == number and each.kind in kinds]
    return job.config.prune.method.needs_gram() and not all(map(job.is_finished, readers))


def measure_split(job: Job, texts: Texts, parent: Path) -> Selection:
    """Return the selection that cuts the parent in one go to the split with the lowest validation loss."""
    files = job.round(1)
    trials = [files.trial(number) for number in range(len(job.outline.candidates))]
    job.stage(
        Stage("split", 1),
        files.split,
        lambda: choose_split(job, texts, parent, files),
        reads=[files.statistics, files.grams],
        scratch=[*trials, *map(temporary_name, trials)],
    )
    job.verify(files.split)
    return read_split(files.split)


def find_shapes(
    job: Job, prepared: Prepared, start: Geometry, parent: Path
) -> tuple[Geometry, Sequence[Sequence[int]]]:
    """Return the dimensions with widths for every layer that measure best, and the orders in which heads go.

    start: dimensions after the last round, with which the search begins.
    """
    files = job.round(1)
    job.stage(
        Stage("shapes", 1),
        files.shapes,
        lambda: choose_shapes(job, prepared.texts, start, parent, files),
        reads=[parent, files.statistics, files.grams],
        also=[files.shape_log],
        scratch=[files.shape_base, temporary_name(files.shape_base)],
    )
    job.verify(files.shapes)
    return read_shapes(files.shapes)


def slice_round(
    job: Job,
    prepared: Prepared,
    each: Round,
    model_folder: Path,
    measured: Selection | None = None,
    head_orders: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Select the units that stay, cut the model and return the sliced model folder.

    measured: the selection of `measure_split`. head_orders: of `find_shapes`.
    """
    files = job.round(each.number)
    job.stage(
        Stage("select", each.number),
        files.selection,
        lambda: select(job, each, model_folder, files, measured=measured, head_orders=head_orders),
        reads=[model_folder, files.statistics, files.grams],
        also=[files.maps],
    )
    job.stage(
        Stage("slice", each.number),
        files.sliced,
        lambda: slice_stage(job, prepared.texts, model_folder, files),
        reads=[model_folder, files.selection, files.grams],
    )
    if job.group.is_main and files.grams.is_dir():
        job.folder.remove(files.grams)
    if job.config.share_dir is not None:
        share_dir = Path(job.config.share_dir)
        job.group.on_main(lambda: remove_shared_grams(share_dir))
    return files.sliced


def recover_round(job: Job, prepared: Prepared, each: Round, sliced: Path) -> Path:
    """Train and evaluate, the second half of a round.

    Returns:
        The recovered model folder, or the sliced one where the round has no tokens.
    """
    config, texts, files = job.config, prepared.texts, job.round(each.number)
    models = {"sliced": sliced}
    if each.tokens:
        models["recovered"] = files.recovered
        recover_stage(job, texts, each, prepared.parent, sliced, partial(measure_ahead, job, texts, sliced))
    tokens = each.first_sequence * config.data.sequence_length + each.tokens
    evaluate_stage(job, texts, models, round_number=each.number, tokens=tokens)
    return models["recovered" if each.tokens else "sliced"]


def recover_stage(
    job: Job,
    texts: Texts,
    each: Round,
    teacher: Path | None,
    start: Path,
    look: Callable[[Engine], object] = lambda engine: None,
) -> None:
    """Train the model in `start` on a round's tokens; its training checkpoints are removed afterwards.

    look: as in `recover`.
    """
    output, is_adaptive = job.round(each.number).recovered, job.config.data.train.adaptive
    before = mixture_before(job, each.number) if is_adaptive else None
    job.stage(
        Stage("recover", each.number),
        output,
        lambda: recover(job, texts, each, teacher, start, output, look),
        reads=[start, *([before] if before else [])],
        also=[job.round(each.number).mixture] if is_adaptive else [],
        scratch=[job.path(CHECKPOINTS)],
    )
    clear_checkpoints(job, each)


def evaluate_stage(job: Job, texts: Texts, models: dict[str, Path], *, round_number: int, tokens: int) -> None:
    """Evaluate a round's own models. tokens: of recovery up to here."""
    output = job.round(round_number).evaluation

    def work() -> None:
        evaluate(job, texts, models, output)
        report(job, output, round_number=round_number, tokens=tokens)

    job.stage(Stage("evaluate", round_number), output, work, reads=list(models.values()))


def pretrain(job: Job) -> dict[str, Any]:
    """Train a model from random weights and return the contents of result.json.

    Raises:
        UnusableText: the text is not what was asked for, which shows here: the tokenizer is made in the first stage.
    """
    start, (each,) = job.round(0).initial, job.outline.rounds

    def make_start() -> None:
        job.group.on_main(lambda: initialise(job.config, start))

    job.announce(job.outline)
    job.stage(Stage("initialise", 0), start, make_start)
    job.verify(start)
    texts = prepare_texts(job, start)
    record_texts(job, texts)
    recover_stage(job, texts, each, None, start)
    trained = job.round(each.number).recovered
    evaluate_stage(job, texts, {"dense": trained}, round_number=0, tokens=each.tokens)
    return finish(job, texts, trained, start, [])


def fetch(job: Job) -> tuple[Path, Record]:
    """Return the parent's folder and its record for run.json (collective).

    Rank 0 downloads a model of the hub, then every rank looks it up in the cache. A name without a revision is resolved
    to a commit once in the life of a run.

    Raises:
        ValueError: the parent cannot be downloaded, is not complete, or is another one than the run began with.
    """
    asked = job.config.model

    def complete() -> str | None:
        folder = download(pinned(asked, began_with(job)), from_cache=False)
        judge_folder(job.config, folder)
        return None if is_local(asked.path or "") else folder.name  # a snapshot's folder is named after its commit

    commit = job.group.on_main(complete, may_be_left=True)
    model = replace(asked, revision=commit)
    folder = Path(job.group.everywhere(lambda: str(download(model, from_cache=True)))[job.group.rank])
    recorded = job.group.on_main(lambda: began_with(job))
    if recorded is None:
        judge_weights(job, folder)
    return folder, recognise(job, folder, commit, recorded)
