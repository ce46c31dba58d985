"""A variant: another recovery of a cut that an earlier run has made.

It has a run folder of its own below that run's, takes over the stages that its settings do not change, and runs the
others.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transact.config.compose import differences, to_dictionary, typed_config
from transact.config.pruning import RecoverConfig
from transact.config.run import RunConfig
from transact.files import copy_finished, damage_of, publish, temporary_name
from transact.models.identity import UnusableModel
from transact.rounds import Outline, Round, Stage, outline, text_sequences
from transact.runs.run_folder import RunFolder
from transact.runs.run_record import read_config, read_record

METRICS = "metrics.jsonl"
# Not compared as settings: the rounds hold what follows from them, or no result depends on them.
BY_ROUND = {"tokens", "token_shares", "learning_rate", "learning_rates", "variant", "max_skipped_steps"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The finished stages of another run that a variant takes over.

    Attributes:
        run: folder of the run that made it.
        run_id: of that run.
        stages: name -> what its run.json says of them, in their order.
    """

    run: Path
    run_id: str
    stages: dict[str, Any]


def find_cut(config: RunConfig, asked: Outline) -> Cut:
    """Find the cut that the variant recovers; only records are read. asked: the variant's outline.

    Raises:
        ValueError: there is none, it is not finished, or the variant asks for another one.
    """
    folder, name = config.variant_of, config.recover.variant
    assert folder is not None
    record, settings = read_record(folder), read_config(folder)
    if record is None or settings is None:
        raise ValueError(f"recover.variant={name!r}: {str(folder)!r} holds no run whose cut it could recover")
    first, finished = typed_config(settings), record.get("stages", {})
    _check_same_cut(first, config)
    kept = kept_stages(first, config, asked)
    stages = {each: finished[each] for each in kept if each in finished}
    missing = [each for each in kept if each not in stages]
    if missing:
        raise ValueError(
            f"recover.variant={name!r}: the run in {str(folder)!r} has not finished {missing[0]} yet, which a variant "
            "takes over: let it come to that first, by its own command without recover.variant"
        )
    start = next(each for each in reversed(list(stages)) if Stage.named(each).kind == "slice")
    if stages[start].get("removed"):
        raise ValueError(
            f"recover.variant={name!r} recovers the model of {start}, which the run in {str(folder)!r} has removed "
            "(keep_rounds=last): only a run with keep_rounds=all can be recovered from an earlier round"
        )
    return Cut(run=folder, run_id=record["run_id"], stages=stages)


def _check_same_cut(first: RunConfig, config: RunConfig) -> None:
    changed = differences(to_dictionary(first), to_dictionary(config))
    others = [each for each in changed if not changes_recovery_alone(each)]
    if others:
        raise ValueError(
            f"recover.variant={config.recover.variant!r} recovers a cut that is there; these settings make another "
            f"one ({'; '.join(others)}): leave them as they were, or choose another name= without a variant"
        )


def changes_recovery_alone(difference: str) -> bool:
    """Return whether a line of `config.compose.differences` leaves the cut as it is.

    recover.validation_sequences does not: what is reserved for validation decides which text calibrates.
    """
    return difference.startswith("recover.") and not difference.startswith("recover.validation_sequences:")


def kept_stages(first: RunConfig, config: RunConfig, asked: Outline) -> list[str]:
    """Name the stages of the first run that the variant's settings do not change.

    These are all before the first recovery that differs, except those of Gram matrices, which are removed once the
    round is sliced.

    Raises:
        ValueError: no recovery differs.
    """
    before = outline(first, asked.parent)
    number = _first_changed(first, config, before, asked)
    if number is None:
        raise ValueError(
            f"recover.variant={config.recover.variant!r} asks for the recovery that the run has already: change "
            "recover.learning_rate, recover.tokens or the like"
        )
    changed = (Stage("recover", number), Stage("evaluate", number))
    end = min(before.stages.index(each) for each in changed if each in before.stages)
    return [each.name for each in before.stages[:end] if each.kind != "gram"]


def _first_changed(first: RunConfig, config: RunConfig, before: Outline, asked: Outline) -> int | None:
    """Return the number of the first round that is recovered in another way, None if there is none."""
    common = [each.name for each in fields(RecoverConfig) if each.name not in BY_ROUND]
    # Another amount of text is read in another order.
    texts = text_sequences(first, before.tokens), text_sequences(config, asked.tokens)
    if any(getattr(first.recover, name) != getattr(config.recover, name) for name in common) or texts[0] != texts[1]:
        return 1
    rounds = zip(before.rounds, asked.rounds, strict=True)
    return next((new.number for old, new in rounds if _recovery(old) != _recovery(new)), None)


def _recovery(each: Round) -> tuple[int, int, float]:
    return each.tokens, each.first_sequence, each.learning_rate


def has_cut(config: RunConfig) -> bool:
    """Return whether the variant has taken over its cut already.

    Raises:
        ValueError: its record cannot be read.
    """
    record = read_record(Path(config.output_dir))
    return record is not None and "cut" in record


def checked_cut(config: RunConfig, asked: Outline) -> Cut:
    """Find the cut, and compare every file of it with its recorded size and digest. Arguments as `find_cut`.

    The run may go on meanwhile, and with keep_rounds=last remove the models of rounds that are over.

    Raises:
        ValueError: there is none, or a file is not as it was when its stage was finished.
    """
    cut = find_cut(config, asked)
    while (problem := _damage(cut)) is not None:
        cut = _found_again(config, asked, cut, problem)
    return cut


def _damage(cut: Cut) -> str | None:
    """Return the first file of the cut that is not as it was recorded, in words; None if there is none."""
    for stage, entry in cut.stages.items():
        for name, described in entry["files"].items():
            problem = damage_of(cut.run / name, described)
            if problem is not None:
                return f"{str(cut.run / name)!r} of {stage} {problem}"
    return None


def _found_again(config: RunConfig, asked: Outline, cut: Cut, problem: str) -> Cut:
    """Return the cut as the run's record has it now.

    Raises:
        ValueError: it is the same, so the problem is not that its run has removed something; or there is none any more.
    """
    again = find_cut(config, asked)
    if again == cut:
        raise ValueError(f"{problem}: the command of that run, once more, makes it anew")
    return again


def take_over(folder: RunFolder, config: RunConfig, asked: Outline, cut: Cut) -> Cut:
    """Make the cut's files and stages those of the variant too. Files take no space where there are hard links.

    Returns:
        The cut, without files that its run has removed since it was found.

    Raises:
        UnusableModel: it cannot be recovered any more, because its run has removed its model.
    """
    while True:
        names = _names(cut)
        folder.announce(*(folder.path / name for name in names))
        try:
            for name in names:
                copy_finished(cut.run / name, folder.path / name)
            break
        except FileNotFoundError as error:
            try:
                cut = _found_again(config, asked, cut, f"{str(error.filename)!r} is missing")
            except ValueError as refusal:
                raise UnusableModel(str(refusal)) from None
            for name in set(names).difference(_names(cut)):
                (folder.path / name).unlink(missing_ok=True)
    _take_over_metrics(cut, folder.path / METRICS)
    folder.stages.update(cut.stages)
    folder.note(cut={"run": str(cut.run.absolute()), "run_id": cut.run_id, "stages": list(cut.stages)})
    return cut


def _names(cut: Cut) -> list[str]:
    return [name for entry in cut.stages.values() for name in entry["files"]]


def _take_over_metrics(cut: Cut, output: Path) -> None:
    """Copy the metrics of the stages that are taken over."""
    length = max(entry["metrics_position"] for entry in cut.stages.values())
    with (cut.run / METRICS).open("rb") as file:
        temporary_name(output).write_bytes(file.read(length))
    publish(temporary_name(output), output)
