"""Measure how much of the demo parent every method keeps, through the stages of `transact.run`.

    python -m benchmarks.quality
    python -m benchmarks.quality --table    (writes the Markdown table again)

Removes a fraction of the transitional parameters (all but embeddings and norms), once without recovery for every
method, and with recovery on the same number of tokens for the main ones. Measures perplexity on held-out text of the
kind that the parent learned from, and on a second kind that it never saw: the descriptions of the installed Python
packages, mostly prose.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality_methods import ONE_SHOT, RECOVERED
from benchmarks.quality_table import quality_table
from benchmarks.trials import of_all_parameters, opened_job, set_threads
from benchmarks.workload import RESULTS, num_cores, parse_whole, write_result
from transact.config.compose import compose_config
from transact.config.inputs import TextConfig
from transact.config.run import RunConfig
from transact.errors import DONE, leave
from transact.files import read_json, write_json, write_text
from transact.models.folder import geometry_of
from transact.models.llama import is_stock
from transact.runs.software import package_versions
from transact.stages.chain import Prepared, cut_round, prune_rounds
from transact.stages.evaluate import measure
from transact.stages.job import Job
from transact.stages.texts import Texts, prepare_texts

TEXTS = ("python_heldout", "package_descriptions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a benchmark.

    Attributes: fraction: of the transitional parameters to remove; None where the overrides say what. overrides: of
    the command line. recovered: whether it goes on after the first cut.
    """

    method: str
    overrides: tuple[str, ...]
    fraction: float | None
    seed: int
    recovered: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings that all trials share. threads: of each process."""

    tokens: int
    evaluation_sequences: int
    threads: int
    folder: Path


def write_descriptions(path: Path) -> None:
    """Write the second kind of text: the descriptions of the installed packages, each once."""
    found = set()
    for distribution in importlib.metadata.distributions():
        text = distribution.metadata.get_payload() or distribution.metadata.get("Description") or ""  # type: ignore[attr-defined]
        if len(text) > 200:
            found.add(text)
    write_text(path, "\n\n".join(sorted(found)))


def trial_config(trial: Trial, settings: Settings, folder: Path) -> RunConfig:
    """Return the configuration that the same overrides give on the command line."""
    common = [
        "name=quality",
        "data.sequence_length=256",
        f"output_dir={folder}",
        f"seed={trial.seed}",
        f"data.token_store={settings.folder}/tokens",
        f"data.evaluation_sequences={settings.evaluation_sequences}",
        "prune.multiple.head_dim=2",
        "prune.multiple.intermediate_size=1",
        f"recover.tokens={settings.tokens}",
        "recover.batch_sequences=16",
        f"recover.validation_sequences={min(32, settings.evaluation_sequences)}",
        "track.mode=disabled",
        "track.progress_seconds=3600",
    ]
    if trial.fraction is not None:
        parent = geometry_of(Path(compose_config(["name=parent"]).model.path or ""))
        common.append(f"prune.remove_fraction={of_all_parameters(trial.fraction, parent)}")
    return compose_config([*common, *trial.overrides])


def opened(config: RunConfig) -> tuple[Job, Prepared, dict[str, Texts]]:
    """Return a job of one process, its prepared parent, and the texts to evaluate on by name."""
    job, prepared = opened_job(config)
    path = Path(config.data.token_store).parent / "descriptions.txt"
    second = replace(config.data, evaluation=TextConfig(source="files", files=[str(path)]))
    other = replace(job, config=replace(job.config, data=second))
    texts = (prepared.texts, prepare_texts(other, prepared.parent))
    return job, prepared, dict(zip(TEXTS, texts, strict=True))


def run_trial(trial: Trial, settings: Settings) -> list[dict[str, Any]]:
    """Run one trial and return its rows, one for each text."""
    set_threads(settings.threads)
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        config = trial_config(trial, settings, Path(name) / "run")
        job, prepared, texts = opened(config)
        # The single cut of a run of one round; the chain finds it finished.
        rounds = job.outline.rounds
        sliced = cut_round(job, prepared, rounds, 0, prepared.parent)[1] if config.prune.rounds == 1 else None
        checkpoint = prune_rounds(job, prepared)[0] if trial.recovered else sliced
        assert checkpoint is not None
        geometry = geometry_of(checkpoint)
        rows = [
            {
                "method": trial.method,
                "fraction": trial.fraction,
                "seed": trial.seed,
                "objective": config.recover.objective if trial.recovered else None,
                "rounds": config.prune.rounds,
                "tokens": config.recover.tokens if trial.recovered else 0,
                "stock": is_stock(read_json(checkpoint / "config.json")),
                "text": text,
                "perplexity_one_shot": measure(job, each, sliced)["perplexity"] if sliced else None,
                "perplexity_recovered": measure(job, each, checkpoint)["perplexity"] if trial.recovered else None,
                "parameters": geometry.parameters(),
                "kv_bytes_per_token": geometry.kv_bytes_per_token(),
                "parent_kv_bytes_per_token": geometry_of(prepared.parent).kv_bytes_per_token(),
                "geometry": geometry.to_dict(),
            }
            for text, each in texts.items()
        ]
        job.forget_models()
        return rows


def parent_perplexities(settings: Settings) -> dict[str, float]:
    set_threads(settings.threads)
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        trial = Trial(method="default", overrides=(), fraction=0.5, seed=0, recovered=False)
        config = trial_config(trial, settings, Path(name))
        job, prepared, texts = opened(config)
        found = {text: measure(job, each, prepared.parent)["perplexity"] for text, each in texts.items()}
        job.forget_models()
        return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--recovered-fractions", type=float, nargs="*", default=[0.5, 0.7])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--one-shot", nargs="*", default=list(ONE_SHOT), choices=list(ONE_SHOT))
    parser.add_argument("--recovered", nargs="*", default=list(RECOVERED), choices=list(RECOVERED))
    parser.add_argument("--tokens", type=int, default=131_072, help="of recovery, over all rounds")
    parser.add_argument("--evaluation-sequences", type=int, default=128)
    parser.add_argument("--calibration-sequences", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=num_cores(), help="trials at a time")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--table", action="store_true", help="only write the table of --output again")
    return parse_whole(parser)


def trials(arguments: argparse.Namespace) -> list[Trial]:
    groups = (
        (True, arguments.recovered, arguments.recovered_fractions),
        (False, arguments.one_shot, arguments.fractions),
    )
    calibration = (f"prune.calibration_sequences={arguments.calibration_sequences}",)
    return [
        Trial(
            method=method,
            overrides=(*(RECOVERED if recovered else ONE_SHOT)[method], *calibration),
            fraction=fraction,
            seed=seed,
            recovered=recovered,
        )
        for recovered, methods, fractions in groups
        for method in methods
        for fraction in fractions
        for seed in arguments.seeds
    ]


def run_all(
    todo: list[Trial], *, tokens: int, evaluation_sequences: int, jobs: int, partial: Path
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run all trials, `jobs` at a time, and return the parent's perplexity by text, and the rows in the trials' order.

    Finished trials are kept in `partial` until all are done: the same call goes on from there.
    """
    sizes = {"tokens": tokens, "evaluation_sequences": evaluation_sequences}
    rows = _finished(partial, sizes)
    threads = max(1, num_cores() // jobs)
    with tempfile.TemporaryDirectory(prefix="transact-quality-") as name:
        settings = Settings(
            tokens=tokens, evaluation_sequences=evaluation_sequences, threads=threads, folder=Path(name)
        )
        write_descriptions(settings.folder / "descriptions.txt")
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            parent = pool.submit(parent_perplexities, settings).result()  # alone: it writes the token stores
            waiting = {pool.submit(run_trial, trial, settings): trial for trial in todo if str(trial) not in rows}
            for done in as_completed(waiting):
                rows[str(waiting[done])] = done.result()
                write_json(partial, {"sizes": sizes, "rows": rows})
                print(f"trial {len(rows)} of {len(todo)}: {_summary(done.result()[0])}", flush=True)
    partial.unlink(missing_ok=True)
    return parent, [row for trial in todo for row in rows[str(trial)]]


def _finished(partial: Path, sizes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the trials that an interrupted call of these sizes has finished."""
    found = read_json(partial) if partial.is_file() else {}
    return found["rows"] if found.get("sizes") == sizes else {}


def _summary(row: dict[str, Any]) -> str:
    figures = (("one-shot", row["perplexity_one_shot"]), ("recovered", row["perplexity_recovered"]))
    shown = ", ".join(f"{name} {value:.2f}" for name, value in figures if value is not None)
    return f"{row['method']}, fraction {row['fraction']}, seed {row['seed']}: {shown}"


def partial_name(output: Path) -> Path:
    return output.with_suffix(".partial.json")


def main() -> None:
    arguments = parse_arguments()
    if not arguments.table:
        parent, rows = run_all(
            trials(arguments),
            tokens=arguments.tokens,
            evaluation_sequences=arguments.evaluation_sequences,
            jobs=arguments.jobs,
            partial=partial_name(arguments.output),
        )
        write_result(arguments.output, {"parent": parent, "rows": rows, "versions": package_versions()})
    table = quality_table(read_json(arguments.output))
    write_text(arguments.output.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
    leave(DONE)
