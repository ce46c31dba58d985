"""Measure what the statistics hooks add to a forward of calibration.

    python -m benchmarks.calibration_overhead

Forwards with and without hooks alternate on one engine; each pair of neighbours gives a ratio, and the median of
these counts.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.workload import RESULTS, environment, relaunch, wait, working_folder, write_result
from transact.config.inputs import DTYPES
from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.engine import Engine, open_engine
from transact.errors import leave
from transact.geometry import Geometry
from transact.models.hooks import collect_statistics
from transact.models.llama import read_geometry

TARGET = 1.10  # with hooks / without


def forward_seconds(
    engine: Engine, geometry: Geometry, tokens: torch.Tensor, group: ProcessGroup, hooks: bool
) -> float:
    """Return the seconds of one forward as calibration runs it, until all ranks are done (collective)."""
    with ExitStack() as stack:
        if hooks:
            stack.enter_context(collect_statistics(engine.module, geometry, are_whole=True))
        wait(group)
        begin = time.perf_counter()
        engine.hidden_forward(tokens)
        wait(group)
        return time.perf_counter() - begin


@torch.no_grad()
def compare(
    engine: Engine, geometry: Geometry, tokens: torch.Tensor, group: ProcessGroup, repetitions: int
) -> dict[str, Any]:
    """Return the median seconds with and without hooks, and the median of the ratios of neighbours (collective)."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repetition in range(-2, repetitions):  # two pairs to warm up
        for hooks in (repetition % 2 == 0, repetition % 2 != 0):
            elapsed = forward_seconds(engine, geometry, tokens, group, hooks=hooks)
            if repetition >= 0:
                seconds[hooks].append(elapsed)
    ratios = sorted(with_hooks / without for with_hooks, without in zip(seconds[True], seconds[False], strict=True))
    return {
        "ratio": median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "ratio_of_fastest": min(seconds[True]) / min(seconds[False]),  # more reliable where other work disturbs
        "seconds_with_hooks": median(seconds[True]),
        "seconds_plain": median(seconds[False]),
        "repetitions": repetitions,
    }


def measure(size: str, arguments: argparse.Namespace, group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Measure the overhead on a random model of this size (collective)."""
    architecture, model = ARCHITECTURES[size](), folder / size
    write_random_model(model, architecture, group)
    geometry = read_geometry(architecture.to_model_config())
    config = EngineConfig(
        zero_stage=arguments.zero_stage,
        dtype=arguments.dtype,
        device=arguments.device,
        micro_batch_sequences=arguments.micro_batch_sequences,
    )
    shape = (arguments.micro_batch_sequences, arguments.sequence_length)
    tokens = torch.randint(geometry.vocab_size, shape, generator=torch.Generator().manual_seed(group.rank))
    with open_engine(model, config, group) as engine:
        figures = compare(engine, geometry, tokens, group, arguments.repetitions)
    return figures | {"geometry": geometry.to_dict(), "parameters": geometry.parameters()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_overhead", description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--sizes", nargs="+", choices=ARCHITECTURES, default=["demo", "25m"])
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--micro-batch-sequences", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--output", type=Path, default=RESULTS / "calibration_overhead.json")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    code = relaunch("benchmarks.calibration_overhead", arguments.processes)
    if code is not None:
        return code
    with process_group(arguments.device, timeout_minutes=10) as group, working_folder(group, None) as folder:
        results = {size: measure(size, arguments, group, folder) for size in arguments.sizes}
        if group.is_main:
            for size, figures in results.items():
                low, high = figures["ratio_quartiles"]
                print(
                    f"{size:6} with hooks / plain: {figures['ratio']:.3f} (quartiles {low:.3f} to {high:.3f}, "
                    f"fastest {figures['ratio_of_fastest']:.3f}), target {TARGET}"
                )
            options = {name: value for name, value in vars(arguments).items() if name not in ("output", "sizes")}
            write_result(arguments.output, {"sizes": results, "target": TARGET, **options, **environment(group)})
    return 0


if __name__ == "__main__":
    leave(main())
