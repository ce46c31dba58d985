"""Measure what data.packing=documents costs a training step: tokens per second beside those of the default.

    python -m benchmarks.packing --processes 2

Steps of one engine on the same tokens, which take turns with and without positions that begin anew at every document.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.workload import RESULTS, environment, relaunch, wait, working_folder, write_result
from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.deepspeed_setup import TrainingSettings
from transact.engine.engine import Engine, open_engine
from transact.errors import DONE, leave
from transact.models.llama import read_geometry


def step_seconds(
    engine: Engine, tokens: torch.Tensor, position_ids: torch.Tensor | None, steps: int, group: ProcessGroup
) -> float:
    """Return the seconds of some steps of one micro-batch each, until all ranks are done (collective)."""
    counted = None if position_ids is None else position_ids > 0
    wait(group)
    begin = time.perf_counter()
    for _ in range(steps):
        engine.backward(engine.loss(tokens, None, counted, position_ids))
        engine.step(1e-4)
    wait(group)
    return time.perf_counter() - begin


def measure(arguments: argparse.Namespace, group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Return tokens per second both ways, and the median of the ratios of neighbours (collective)."""
    architecture, model = ARCHITECTURES[arguments.size](), folder / "model"
    write_random_model(model, architecture, group)
    geometry = read_geometry(architecture.to_model_config())
    settings = TrainingSettings(
        gradient_accumulation_steps=1, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.95), gradient_clipping=1.0
    )
    shape = (arguments.micro_batch_sequences, arguments.sequence_length)
    tokens = torch.randint(geometry.vocab_size, shape, generator=torch.Generator().manual_seed(group.rank))
    position_ids = (torch.arange(shape[1]) % arguments.document_tokens).expand(shape)
    seconds: dict[str, list[float]] = {"documents": [], "stream": []}
    config = EngineConfig(micro_batch_sequences=shape[0])
    with open_engine(model, config, group, training=settings) as engine:
        for repetition in range(-1, arguments.repetitions):  # a pair to warm up
            for name in sorted(seconds, reverse=repetition % 2 == 0):
                positions = position_ids if name == "documents" else None
                elapsed = step_seconds(engine, tokens, positions, arguments.steps, group)
                if repetition >= 0:
                    seconds[name].append(elapsed)
    count = tokens.numel() * arguments.steps * group.world_size
    ratios = sorted(plain / packed for packed, plain in zip(seconds["documents"], seconds["stream"], strict=True))
    return {
        "ratio": median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "tokens_per_s": {name: count / median(each) for name, each in seconds.items()},
        "parameters": geometry.parameters(),
        "sequence_length": shape[1],
        "document_tokens": arguments.document_tokens,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--size", choices=ARCHITECTURES, default="14m")
    parser.add_argument("--micro-batch-sequences", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--document-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1, help="of each way before the other takes its turn")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS / "packing.json")
    arguments = parser.parse_args()
    code = relaunch("benchmarks.packing", arguments.processes)
    if code is not None:
        raise SystemExit(code)
    with process_group("cpu", timeout_minutes=10) as group, working_folder(group, None) as folder:
        found = measure(arguments, group, folder)
        if group.is_main:
            print(f"documents / stream: {found['ratio']:.3f} of the tokens per second")
            write_result(arguments.output, found | environment(group))


if __name__ == "__main__":
    main()
    leave(DONE)
