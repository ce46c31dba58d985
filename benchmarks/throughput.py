"""Measure tokens per second of recovery beside a bare DeepSpeed loop and a plain PyTorch loop.

    python -m benchmarks.throughput --processes 2 --size 14m --zero-stage 3

The three take turns on the same batches within one run, since a machine's speed changes from one minute to the
next; what counts is the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loops import LOOPS, WARM_UP_STEPS, Contest
from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.workload import (
    RESULTS,
    environment,
    quiet_job,
    random_texts,
    relaunch,
    run_config,
    working_folder,
    write_result,
)
from transact.config.inputs import DTYPES
from transact.config.machines import EngineConfig
from transact.config.run import RunConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.deepspeed_setup import TrainingSettings
from transact.errors import leave
from transact.models.llama import read_geometry
from transact.rounds import tokens_per_batch

# Ours / another loop, at least. Plain PyTorch keeps the whole model on every rank, so it is compared at ZeRO stage 0.
TARGETS = {"ours_to_bare_deepspeed": 0.97, "ours_to_plain_pytorch": 0.9}


def compare(contest: Contest, repetitions: int) -> dict[str, list[float]]:
    """Return tokens per second of each loop in every repetition, on rank 0; a first turn of each does not count."""
    tokens = (contest.num_steps - WARM_UP_STEPS) * tokens_per_batch(contest.config)
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    with contextlib.ExitStack() as stack:
        turns = {name: stack.enter_context(loop(contest)) for name, loop in LOOPS.items()}
        for repetition in range(-1, repetitions):
            for name in rotated(list(turns), repetition):
                seconds = turns[name]()
                if repetition >= 0 and contest.job.group.is_main:
                    rates[name].append(tokens / seconds)
    return rates


def rotated(names: list[str], places: int) -> list[str]:
    """Return the names rotated by `places`, so that no loop is always the first."""
    places %= len(names)
    return names[places:] + names[:places]


def ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    """Return our rates over another loop's, each of neighbours in time."""
    return [ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True)]


def summarise(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians. A ratio is taken between neighbours in time, then the median of these."""

    return {
        "tokens_per_s": {name: median(values) for name, values in rates.items()},
        "ours_to_bare_deepspeed": median(ratios(rates, "bare_deepspeed")),
        "ours_to_plain_pytorch": median(ratios(rates, "plain_pytorch")),
        # More reliable where other work disturbs the machine.
        "fastest_ours_to_bare_deepspeed": max(rates["ours"]) / max(rates["bare_deepspeed"]),
        "repetitions": rates,
    }


def shortfalls_of_throughput(result: dict[str, Any]) -> list[str]:
    """Return a line for each loop beside which ours is slower than the target allows."""
    of_stage = [name for name in TARGETS if name != "ours_to_plain_pytorch" or result["engine"]["zero_stage"] == 0]
    where = f"throughput of {result['parameters']:,} parameters at ZeRO stage {result['engine']['zero_stage']}"
    return [
        f"{where}: {name} is {result[name]:.3f}, below {TARGETS[name]}"
        for name in of_stage
        if result[name] < TARGETS[name]
    ]


def throughput_markdown(results: list[dict[str, Any]]) -> str:
    """Return a table of the throughput of recovery beside the other loops, a row for each result.

    Medians, and the lowest and the highest of the repetitions.
    """

    def cell(each: dict[str, Any], name: str) -> str:
        found = ratios(each["repetitions"], name)
        return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    rows = ["| parameters | ZeRO stage | of a bare DeepSpeed loop | of a plain PyTorch loop |", "|---|---|---|---|"]
    for each in sorted(results, key=lambda each: (each["parameters"], each["engine"]["zero_stage"])):
        beside = f"{cell(each, 'bare_deepspeed')} | {cell(each, 'plain_pytorch')}"
        rows.append(f"| {each['parameters'] / 1e6:.0f} million | {each['engine']['zero_stage']} | {beside} |")
    return "\n".join(rows) + "\n"


def make_config(arguments: argparse.Namespace, group: ProcessGroup, folder: Path, model: Path) -> RunConfig:
    engine = EngineConfig(
        zero_stage=arguments.zero_stage,
        dtype=arguments.dtype,
        device=arguments.device,
        micro_batch_sequences=arguments.micro_batch_sequences,
    )
    return run_config(
        folder,
        model=model,
        engine=engine,
        sequence_length=arguments.sequence_length,
        batch_sequences=arguments.micro_batch_sequences * arguments.accumulation * group.world_size,
        num_steps=arguments.steps + WARM_UP_STEPS,
        calibration_sequences=group.world_size,
        other_sequences=group.world_size,
    )


def make_contest(config: RunConfig, arguments: argparse.Namespace, group: ProcessGroup, model: Path) -> Contest:
    """Write a random model and texts, and return what all loops share (collective)."""
    architecture, folder, recover = ARCHITECTURES[arguments.size](), Path(config.output_dir), config.recover
    job = quiet_job(config, read_geometry(architecture.to_model_config()), group)
    round_ = replace(job.outline.rounds[0], geometry=job.outline.parent)  # nothing is cut here
    write_random_model(model, architecture, group)
    return Contest(
        job=job,
        texts=random_texts(folder, config, group, vocab_size=architecture.vocab_size),
        model=model,
        round=round_,
        settings=TrainingSettings(
            gradient_accumulation_steps=arguments.accumulation,
            learning_rate=round_.learning_rate,
            weight_decay=recover.weight_decay,
            betas=(recover.beta1, recover.beta2),
            gradient_clipping=recover.gradient_clipping,
        ),
    )


def describe(contest: Contest) -> dict[str, Any]:
    geometry, config = contest.round.geometry, contest.config
    return {
        "geometry": geometry.to_dict(),
        "parameters": geometry.parameters(),
        "engine": asdict(config.engine),
        "batch_sequences": config.recover.batch,
        "sequence_length": config.data.sequence_length,
        "steps_per_turn": contest.num_steps - WARM_UP_STEPS,
        "gradient_accumulation_steps": contest.settings.gradient_accumulation_steps,
    }


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--size", choices=ARCHITECTURES, default="demo")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--micro-batch-sequences", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches in a step")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="of each loop before the next takes its turn")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/throughput_SIZE_stageN.json")
    arguments = parser.parse_args(words)
    name = f"throughput_{arguments.size}_stage{arguments.zero_stage}.json"
    arguments.output = arguments.output or RESULTS / name
    return arguments


def main() -> int:
    arguments = parse()
    code = relaunch("benchmarks.throughput", arguments.processes)
    if code is not None:
        return code
    with process_group(arguments.device, timeout_minutes=10) as group, working_folder(group, None) as folder:
        model = folder / "model"
        contest = make_contest(make_config(arguments, group, folder, model), arguments, group, model)
        rates = compare(contest, arguments.repetitions)
        if group.is_main:
            summary = summarise(rates)
            for name, rate in summary["tokens_per_s"].items():
                print(f"{name:16} {rate:12,.0f} tokens/s")
            result = summary | describe(contest) | environment(group)
            print(
                f"ours / bare DeepSpeed: {summary['ours_to_bare_deepspeed']:.3f}; "
                f"ours / plain PyTorch: {summary['ours_to_plain_pytorch']:.3f}"
            )
            for line in shortfalls_of_throughput(result):
                print(line)
            write_result(arguments.output, result)
    return 0


if __name__ == "__main__":
    leave(main())
