"""Measure what every method keeps of a real LLaMA, through the stages of `transact.run`.

    python -m benchmarks.real_model --text FOLDER                          one-shot rows: hours on one core
    python -m benchmarks.real_model --text FOLDER --recover 131072         and rows after recovery: hours more
    python -m benchmarks.real_model --text FOLDER --tasks FOLDER           and accuracies
    python -m benchmarks.real_model --table                                writes table and picture again

Without --model it is SmolLM2-135M-Instruct, from PyPI. One calibration serves all methods. A row is kept as soon as it
is finished: the same call, or one that asks for more rows, goes on from there, after a kill too. The result is
real_model.json in --work; with the text that the published one was measured on, rows can be added to that by --output.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.flap import SUMS, flap_selection
from benchmarks.real_model_calibration import calibrate_once, take_calibration
from benchmarks.real_model_inputs import MeasuredText, prepare_tasks, prepare_text
from benchmarks.real_model_methods import (
    DENSE,
    FLAP,
    METHODS,
    PAPER_RECIPE,
    Plan,
    Row,
    preset_of,
    with_and_without_refit,
)
from benchmarks.real_model_table import draw, real_model_markdown
from benchmarks.smollm2 import smollm2_folder
from benchmarks.trials import opened_job, say, set_threads
from benchmarks.workload import REPOSITORY, machine, num_cores
from transact.data.token_store import TokenStore
from transact.errors import DONE, Failure, Parser, Refusal, fail, leave, refuse
from transact.files import file_digest, publish, read_json, temporary_name, write_json, write_text
from transact.geometry import Geometry
from transact.models.folder import check_files, geometry_of
from transact.models.identity import identity_files
from transact.pruning.activation_maps import activation_maps
from transact.pruning.criteria import Criteria
from transact.pruning.statistics import Statistic
from transact.rounds import Stage
from transact.runs.run_record import read_record
from transact.runs.software import git_revision
from transact.stages.calibrate import calibration_positions, read_statistics
from transact.stages.chain import Prepared, cut_round, prune_rounds
from transact.stages.evaluate import measure
from transact.stages.job import Job
from transact.stages.select import write_maps
from transact.stages.tasks import evaluate_side_by_side


def needed_statistics(rows: Iterable[Row], plan: Plan) -> list[Statistic]:
    """Return what calibration sums for the methods of all rows together."""
    geometry = geometry_of(plan.model)
    methods = {row.method: plan.config(row).prune.method for row in rows if row.method != DENSE}
    needed = [each for method in methods.values() for each in Criteria.of(method).statistics(geometry)]
    return list(dict.fromkeys([*needed, *(SUMS if FLAP in map(preset_of, methods) else ())]))


def take_selection(job: Job, parent: Path) -> None:
    """Finish the first round's selection by FLAP's, which is no criterion of the program."""
    (only,), files = job.outline.rounds, job.round(1)

    def select() -> None:
        made = flap_selection(job, only, parent)
        write_maps(activation_maps(read_statistics(files.statistics), made), files.maps)
        write_json(files.selection, made.to_json())

    job.stage(Stage("select", 1), files.selection, select, also=[files.maps])


def run_row(row: Row, plan: Plan, needed: Sequence[Statistic]) -> dict[str, Any]:
    """Measure one row and return it."""
    begun = read_record(plan.row_folder(row)) or {}
    if begun.get("git_revision") != git_revision():  # what other code has begun is begun again
        shutil.rmtree(plan.row_folder(row), ignore_errors=True)
    job, prepared = opened_job(plan.config(row))
    checkpoint = prepared.parent
    if row.method == DENSE and not row.tasks:
        write_tokens(job, prepared, plan)
    if row.method != DENSE:
        calibrate_once(job, prepared, needed, plan.work / "calibration")
        take_calibration(job, plan.work / "calibration")
        if preset_of(row.method) == FLAP:
            take_selection(job, prepared.parent)
        checkpoint = (
            prune_rounds(job, prepared)[0]
            if row.tokens
            else cut_round(job, prepared, job.outline.rounds, 0, prepared.parent)[1]
        )
    figures = accuracies(job, prepared, checkpoint) if row.tasks else perplexities(job, prepared, checkpoint, plan)
    measured = describe_row(row, job, geometry_of(checkpoint)) | figures | {"overrides": plan.overrides(row)}
    job.forget_models()  # or the next row's engine is beside it
    shutil.rmtree(job.folder.path)
    return measured


def held_out_stores(prepared: Prepared, plan: Plan) -> dict[str, TokenStore]:
    return {next(iter(plan.text.held_out)): prepared.texts.evaluation, **prepared.texts.further}


def write_tokens(job: Job, prepared: Prepared, plan: Plan) -> None:
    """Write the tokens of calibration and of every held-out text, (sequences, length) each, for benchmarks/peers."""
    train, stores, output = prepared.texts.train, held_out_stores(prepared, plan), plan.work / "tokens.safetensors"
    tokens = {name: each.sequences(torch.arange(each.num_sequences)) for name, each in stores.items()}
    tokens["calibration"] = train.sequences(calibration_positions(job, prepared.texts))
    save_file({name: each.contiguous() for name, each in tokens.items()}, temporary_name(output))
    publish(temporary_name(output), output)


def perplexities(job: Job, prepared: Prepared, checkpoint: Path, plan: Plan) -> dict[str, Any]:
    texts, stores = prepared.texts, held_out_stores(prepared, plan)
    found = {name: measure(job, replace(texts, evaluation=store), checkpoint) for name, store in stores.items()}
    return {
        "perplexity": {name: each["perplexity"] for name, each in found.items()},
        "evaluation_tokens": {name: stores[name].num_sequences * (stores[name].sequence_length - 1) for name in stores},
    }


def accuracies(job: Job, prepared: Prepared, checkpoint: Path) -> dict[str, Any]:
    """Run the tasks and return, by task, the accuracy, its standard error and the number of documents."""
    output = job.path("tasks.json")
    texts, kept = replace(prepared.texts, further={}), job.path("measured.json")
    evaluate_side_by_side(job, texts, {"pruned": checkpoint}, output, kept)
    return {"tasks": {name: accuracy(found) for name, found in read_json(output)["pruned"]["tasks"].items()}}


def accuracy(found: dict[str, float]) -> dict[str, float]:
    """Return the accuracy with its standard error: of a mean over documents that are right or wrong."""
    share, count = found["acc"], found["documents"]
    return {"accuracy": share, "standard_error": (share * (1 - share) / (count - 1)) ** 0.5, "documents": count}


def describe_row(row: Row, job: Job, geometry: Geometry) -> dict[str, Any]:
    """Return what a row says besides its figures. removed: the share of the transitional parameters that is gone."""
    parent, method = job.outline.parent, job.config.prune.method
    seconds = {name: entry["seconds"] for name, entry in job.folder.stages.items()}
    return {
        "method": row.method,
        "fraction": row.fraction,
        "recovery_tokens": row.tokens,
        "refit": None if row.method == DENSE else method.refit,
        "split": None if row.method == DENSE else job.config.prune.split,
        "rounds": 0 if row.method == DENSE else job.config.prune.rounds,
        "removed_transitional": 1 - geometry.transitional_parameters() / parent.transitional_parameters(),
        "removed_of_all": 1 - geometry.parameters() / parent.parameters(),
        "parameters": geometry.parameters(),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        "geometry": geometry.to_dict(),
        # Without calibration and Gram matrices, which all methods share.
        "seconds": {
            name: each for name, each in seconds.items() if name not in ("round_01/calibrate", "round_01/gram")
        },
        "revision": git_revision(),
    }


def asked_rows(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows that the command line asks for, in the order in which they are measured."""
    rows = [Row(method=DENSE, fraction=0.0)]
    for fraction in arguments.fractions:
        for method in arguments.methods:
            both = [method] if arguments.own_refit else with_and_without_refit(method)
            rows += [Row(method=each, fraction=fraction) for each in both]
    if arguments.recover:
        cuts = [(method, fraction) for fraction in arguments.recovered_fractions for method in arguments.recovered]
        rows += [Row(method=method, fraction=fraction, tokens=arguments.recover) for method, fraction in cuts]
    if arguments.tasks:
        cuts = [(method, fraction) for fraction in arguments.task_fractions for method in arguments.task_methods]
        rows += [Row(method=method, fraction=fraction, tasks=True) for method, fraction in [(DENSE, 0.0), *cuts]]
    return list(dict.fromkeys(rows))


def name_of(measured: dict[str, Any]) -> str:
    """Return the name of the row that a part of the result is of."""
    own = {name: measured[name] for name in ("method", "fraction")}
    return Row(**own, tokens=measured["recovery_tokens"], tasks="tasks" in measured).name


def begun_result(output: Path, fixed: dict[str, Any], redo: Sequence[str]) -> dict[str, Any]:
    """Return what an earlier call has measured, without the rows of other code that are to be measured again.

    Args:
        redo: methods to measure again.

    Raises:
        Refusal: it was measured with another model, other text or other settings.
    """
    if not output.is_file():
        return fixed | {"rows": []}
    found = read_json(output)
    for name, value in fixed.items():
        if found[name] and found[name] != value:  # tasks may come with a later call
            raise Refusal(
                f"--output: {str(output)!r} holds rows of another {name} ({_changes(found[name], value)}): choose "
                "another file, or remove it"
            )
    now = git_revision()
    kept = [row for row in found["rows"] if row["method"] not in redo or (now and row.get("revision") == now)]
    return dict(found) | {"rows": kept}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in sorted(changed))


def measure_rows(rows: list[Row], plan: Plan, result: dict[str, Any], output: Path) -> None:
    """Measure the rows that the result lacks, and write it after each."""
    finished = {name_of(row) for row in result["rows"]}
    waiting = [row for row in rows if row.name not in finished]
    needed = needed_statistics(rows, plan)
    begun = time.monotonic()
    for number, row in enumerate(waiting, start=1):
        say(f"row {number} of {len(waiting)}: {row.name}")
        measured = run_row(row, plan, needed)
        result["rows"].append(measured)
        write_json(output, result)
        left = (time.monotonic() - begun) / number * (len(waiting) - number)
        say(f"  {summary(measured)}; about {left / 60:,.0f} minutes left")


def summary(measured: dict[str, Any]) -> str:
    if "tasks" in measured:
        return ", ".join(f"{name} {each['accuracy']:.3f}" for name, each in measured["tasks"].items())
    return ", ".join(f"{name} {each:,.2f}" for name, each in measured["perplexity"].items())


def fixed_parts(model: Path, text: MeasuredText, tasks: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what rows of one result have in common; task files may come with a later call."""
    geometry = geometry_of(model)
    return {
        "model": {
            "name": model.resolve().name,
            "files": {name: file_digest(model / name) for name in identity_files(model)},
            "geometry": geometry.to_dict(),
            "parameters": geometry.parameters(),
            "transitional_parameters": geometry.transitional_parameters(),
            "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        },
        "texts": text.description,
        "settings": settings,
    } | ({"tasks": tasks} if tasks else {})


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder; without it SmolLM2-135M-Instruct from PyPI")
    parser.add_argument("--text", type=Path, help="a folder: .jsonl files are the mixture, .txt files are held out")
    parser.add_argument("--tasks", type=Path, help="a folder with .yaml files of lm-eval tasks")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="names of conf/prune/method, and flap")
    parser.add_argument(
        "--own-refit", action="store_true", help="each method as it is alone, not with and without refit"
    )
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.3, 0.7])
    parser.add_argument(
        "--recover", type=int, default=0, metavar="TOKENS", help="rows after recovery on so many tokens"
    )
    parser.add_argument(
        "--recovered", nargs="*", default=["default", "obs", PAPER_RECIPE], help='methods, "default, 4 rounds" say'
    )
    parser.add_argument("--recovered-fractions", type=float, nargs="*", default=[0.5, 0.3, 0.7])
    parser.add_argument("--task-methods", nargs="*", default=["default", "paper_heads"])
    parser.add_argument("--task-fractions", type=float, nargs="*", default=[0.3, 0.5])
    parser.add_argument("--task-limit", type=int, default=500, help="documents of each task, from its first on")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--calibration-sequences", type=int, default=64)
    parser.add_argument("--validation-sequences", type=int, default=8, help="that splits and recovery are judged by")
    parser.add_argument("--evaluation-sequences", type=int, default=16, help="of every held-out text")
    parser.add_argument("--multiple", type=int, default=8, help="that head_dim and intermediate_size are multiples of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / "outputs" / "real_model", help="for what is made on the way"
    )
    parser.add_argument("--output", type=Path, help="real_model.json in --work by default")
    parser.add_argument(
        "--redo",
        nargs="*",
        default=[],
        metavar="METHOD",
        help="measure rows of these again, if of another commit",
    )
    parser.add_argument("--peers", type=Path, metavar="FILE", help="rows of benchmarks/peers to put into the result")
    parser.add_argument("--table", action="store_true", help="only write table and picture of --output again")
    arguments = parser.parse_args()
    arguments.output = arguments.output or arguments.work / "real_model.json"
    if arguments.table and not arguments.output.is_file():
        parser.error(f"--table: there is no {str(arguments.output)!r} yet")
    if arguments.text is None and not arguments.table:
        parser.error("--text is required: a folder of text, which is not part of the project")
    return arguments


SETTINGS = (
    "sequence_length",
    "calibration_sequences",
    "validation_sequences",
    "evaluation_sequences",
    "multiple",
    "seed",
    "task_limit",
    "threads",
)


def prepare(arguments: argparse.Namespace) -> tuple[list[Row], Plan, dict[str, Any]]:
    """Return the rows that are asked for, what they share, and the result so far; the request is checked here.

    Raises:
        ValueError: a method, a folder or a file is not what it must be, or the result is of another request.
        Failure: the model cannot be downloaded.
    """
    rows, work = asked_rows(arguments), arguments.work
    for row in rows:
        row.check()
    if arguments.model is not None:
        check_files(arguments.model)
    text = prepare_text(arguments.text, work / "texts")
    tasks, files = prepare_tasks(arguments.tasks, work / "tasks") if arguments.tasks else ([], {})
    model = arguments.model or smollm2_folder(work)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    plan = Plan(model=model, text=text, work=work, settings=settings, tasks=tasks)
    result = begun_result(arguments.output, fixed_parts(model, text, files, settings), arguments.redo)
    return rows, plan, {"machine": machine(torch.device("cpu"))} | result | {"tasks": files or result.get("tasks", {})}


def with_peers(result: dict[str, Any], peers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result with the rows of benchmarks/peers in place of those of the same names."""
    names = {name_of(row) for row in peers}
    return result | {"rows": [row for row in result["rows"] if name_of(row) not in names] + peers}


def show(output: Path) -> None:
    """Write the table and the picture of a result beside it, and print the table."""
    found = read_json(output)
    table = real_model_markdown(found)
    write_text(output.with_suffix(".md"), table)
    draw(found, output.with_suffix(".svg"))
    print(table)


def main() -> None:
    arguments = parse_arguments()
    set_threads(arguments.threads)
    if not arguments.table:
        try:
            rows, plan, result = prepare(arguments)
        except Failure as error:
            leave(fail(error))
        except ValueError as error:
            leave(refuse(error))
        measure_rows(rows, plan, result, arguments.output)
    if arguments.peers is not None:
        write_json(arguments.output, with_peers(read_json(arguments.output), read_json(arguments.peers)))
    show(arguments.output)


if __name__ == "__main__":
    main()
    leave(DONE)
