"""Measure what a checkpoint inside a recovery costs: seconds, bytes, and share of the time at the default interval.

    python -m benchmarks.saving --processes 2

A random model of the given sizes in a training engine, one step so that Adam has a state, then saves into a temporary
folder: where TMPDIR points decides which disk is measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.workload import RESULTS, environment, relaunch, working_folder, write_result
from transact.config.machines import CheckpointEveryConfig, EngineConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.deepspeed_setup import TrainingSettings
from transact.engine.engine import open_engine
from transact.engine.training_checkpoints import checkpoint_folders, load_training, save_training
from transact.errors import DONE, leave
from transact.models.llama import read_geometry

TARGET = 0.05


def measure(size: str, repetitions: int, group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Save `repetitions` times with best weights apart, the most that a checkpoint holds, then load (collective)."""
    architecture, model, checkpoints = ARCHITECTURES[size](), folder / size, folder / f"{size}_checkpoints"
    write_random_model(model, architecture, group)
    geometry = read_geometry(architecture.to_model_config())
    settings = TrainingSettings(
        gradient_accumulation_steps=1, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.95), gradient_clipping=1.0
    )
    tokens = torch.randint(geometry.vocab_size, (1, 32), generator=torch.Generator().manual_seed(group.rank))
    seconds = []
    with open_engine(model, EngineConfig(micro_batch_sequences=1), group, training=settings) as engine:
        engine.backward(engine.loss(tokens))
        engine.step(1e-4)
        best = engine.snapshot()
        for turn in range(repetitions):
            group.barrier()
            begin = time.perf_counter()
            save_training(engine, checkpoints / f"step_{turn:04d}", group, best=best, position={})
            seconds.append(time.perf_counter() - begin)
        newest = checkpoint_folders(checkpoints)[0]
        size_bytes = sum(file.stat().st_size for file in newest.iterdir())
        group.barrier()
        begin = time.perf_counter()
        load_training(engine, newest, group)
        group.barrier()
        load_seconds = time.perf_counter() - begin
    interval = 60 * (CheckpointEveryConfig().minutes or 0.0)
    return {
        "parameters": geometry.parameters(),
        "bytes": size_bytes,
        "save_seconds": median(seconds),
        "share_of_time": median(seconds) / (interval + median(seconds)),
        "load_seconds": load_seconds,
        "repetitions": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--sizes", nargs="+", choices=ARCHITECTURES, default=["demo", "25m", "130m"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "saving.json")
    arguments = parser.parse_args()
    code = relaunch("benchmarks.saving", arguments.processes)
    if code is not None:
        raise SystemExit(code)
    with process_group("cpu", timeout_minutes=10) as group, working_folder(group, None) as folder:
        results = {size: measure(size, arguments.repetitions, group, folder) for size in arguments.sizes}
        if group.is_main:
            for size, figures in results.items():
                print(
                    f"{size:6} {figures['bytes'] / 1e6:8.1f} MB saved in {figures['save_seconds']:.2f} s: "
                    f"{figures['share_of_time']:.2%} of the time at the default interval, target {TARGET:.0%}"
                )
            write_result(arguments.output, {"sizes": results, "target": TARGET, **environment(group)})


if __name__ == "__main__":
    main()
    leave(DONE)
