"""What the benchmarks share: random tokens on disk, a configuration, launching, results.

Needs torch, transformers, deepspeed, safetensors, numpy and pyyaml only: a GPU machine may have nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from transact.config.inputs import DataConfig, ModelConfig, TextConfig, TrainTextConfig
from transact.config.machines import EngineConfig, LaunchConfig
from transact.config.outputs import TrackConfig
from transact.config.pruning import MultipleConfig, PruneConfig, RecoverConfig
from transact.config.run import RunConfig
from transact.data.order import SequenceOrder
from transact.data.token_store import DOCUMENTS_NAME, INDEX_NAME, TOKENS_NAME, TokenStore, write_index
from transact.distributed.process import ProcessGroup
from transact.files import write_json
from transact.geometry import Geometry
from transact.rounds import outline, reserved_sequences
from transact.runs.run_folder import RunFolder
from transact.runs.software import package_versions
from transact.stages.job import Job
from transact.stages.texts import Texts
from transact.tracking.tracker import Tracker

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
DEMO_PARENT = REPOSITORY / "transact" / "assets" / "demo_parent"
TOKEN_SKEW = 3.0


def write_random_tokens(folder: Path, *, num_sequences: int, sequence_length: int, vocab_size: int, seed: int) -> None:
    """Write a token store of independent tokens, some far more frequent than others: something to learn."""
    folder.mkdir(parents=True)
    dtype = numpy.uint16 if vocab_size <= 2**16 else numpy.uint32
    uniform = numpy.random.default_rng(seed).random((num_sequences, sequence_length), dtype=numpy.float32)
    (vocab_size * uniform**TOKEN_SKEW).astype(dtype).clip(0, vocab_size - 1).tofile(folder / TOKENS_NAME)
    (folder / DOCUMENTS_NAME).touch()
    write_index(
        folder,
        {
            "num_sequences": num_sequences,
            "sequence_length": sequence_length,
            "dtype": numpy.dtype(dtype).name,
            "is_whole_text": True,
            "largest_token": vocab_size - 1,
            "documents": 0,
            "documents_left_out": 0,
        },
    )


def random_texts(folder: Path, config: RunConfig, group: ProcessGroup, *, vocab_size: int) -> Texts:
    """Write token stores of exactly the size that the configuration uses up, unless they are there; open them.

    Collective.
    """
    reserved = reserved_sequences(config)
    length = config.data.sequence_length
    counts = {"train": reserved + config.recover.tokens // length, "evaluation": config.data.evaluation_sequences}

    def write() -> None:
        for seed, (name, count) in enumerate(counts.items()):
            if (folder / name / INDEX_NAME).is_file():
                continue
            write_random_tokens(
                folder / name, num_sequences=count, sequence_length=length, vocab_size=vocab_size, seed=seed
            )

    group.on_main(write)
    order = SequenceOrder(num_sequences=counts["train"], num_reserved=reserved, seed=config.seed)
    train, evaluation = (TokenStore(folder / name) for name in counts)
    return Texts(train=train, order=order, trained={"data.train": train}, evaluation=evaluation)


def run_config(
    folder: Path,
    *,
    model: Path,
    engine: EngineConfig,
    sequence_length: int,
    batch_sequences: int,
    num_steps: int,
    calibration_sequences: int,
    other_sequences: int,
) -> RunConfig:
    """Return the configuration of one round of pruning with `num_steps` of recovery in `folder`.

    Args:
        other_sequences: for validation, and for evaluation.
    """
    return RunConfig(
        name="benchmark",
        output_dir=str(folder),
        model=ModelConfig(path=str(model)),
        data=DataConfig(
            # Not used: the token stores are made by `random_texts`.
            train=TrainTextConfig(source="python_stdlib"),
            evaluation=TextConfig(source="python_stdlib"),
            sequence_length=sequence_length,
            evaluation_sequences=other_sequences,
            token_store=str(folder / "tokens"),
        ),
        prune=PruneConfig(
            remove_fraction=0.4,
            calibration_sequences=calibration_sequences,
            multiple=MultipleConfig(head_dim=8, intermediate_size=16),
        ),
        recover=RecoverConfig(
            tokens=num_steps * batch_sequences * sequence_length,
            batch_sequences=batch_sequences,
            learning_rate=1e-4,
            validation_sequences=other_sequences,
            validations=1,
            warmup_fraction=0.0,  # and so no early validation in the midst of what is timed
            min_warmup_steps=0,
        ),
        engine=engine,
        track=TrackConfig(mode="disabled"),
        launch=LaunchConfig(),
    )


def quiet_job(config: RunConfig, parent: Geometry, group: ProcessGroup) -> Job:
    """Return a job whose stages can be called one by one: it keeps no metrics and shows nothing.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    folder = RunFolder(Path(config.output_dir))
    return Job(config=config, group=group, folder=folder, outline=outline(config, parent), tracker=Tracker(None, None))


@contextmanager
def working_folder(group: ProcessGroup, parent: Path | None) -> Iterator[Path]:
    """Yield a folder of the same name on every rank, removed at the end (collective)."""
    if not group.is_main:
        yield Path(group.broadcast(None))
        group.barrier()
        return
    with tempfile.TemporaryDirectory(prefix="transact-benchmark-", dir=parent) as name:
        yield Path(group.broadcast(name))
        group.barrier()  # the others may still read


def wait(group: ProcessGroup) -> None:
    """Wait until every rank and its device are done, so that a clock may be read (collective)."""
    if group.device.type == "cuda":
        torch.cuda.synchronize(group.device)
    group.barrier()


def relaunch(module: str, processes: int) -> int | None:
    """Start this command again in several processes and return its exit code; None where that is not needed."""
    if processes == 1 or "RANK" in os.environ:
        return None
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # torchrun would give each process a single thread, with a warning.
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // processes))}
    command = [*launcher, "-m", module, *sys.argv[1:]]
    return subprocess.run(command, env=threads | os.environ, check=False).returncode


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def environment(group: ProcessGroup) -> dict[str, Any]:
    """Return what a figure depends on besides the code: machine, versions, ranks."""
    return machine(group.device) | {"world_size": group.world_size}


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": num_cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads_per_rank": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": package_versions(),
    }


FREE = ("jobs", "folder", "output", "table")  # arguments that change no figure


def parse_whole(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; a part of a measurement, or another one, must not replace the published result."""
    arguments = parser.parse_args()
    changed = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    own = [f"--{name.replace('_', '-')}" for name in changed if name not in FREE]
    if own and arguments.output.resolve().is_relative_to(RESULTS):
        parser.error(f"with {', '.join(own)} the result is not the published one: name another --output")
    return arguments


def write_result(path: Path, result: dict[str, Any]) -> None:
    write_json(path, result)
    print(f"result: {path}", flush=True)
