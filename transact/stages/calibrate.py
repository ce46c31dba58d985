"""Calibrate: sums of squares of the transitional activations, added up over all ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transact.data.order import micro_batches
from transact.files import publish, read_json, temporary_name
from transact.models.hooks import collect_statistics
from transact.models.llama import read_geometry
from transact.prune.statistics import ActivationStatistics
from transact.runtime.engine import open_engine
from transact.runtime.process import ProcessGroup
from transact.stages.job import Job
from transact.stages.texts import Texts


def sum_over_ranks(statistics: ActivationStatistics, group: ProcessGroup) -> ActivationStatistics:
    """The statistics of all ranks' tokens, on every rank: sums merge by addition."""
    return ActivationStatistics.from_tensors(
        {name: group.sum(tensor) for name, tensor in statistics.to_tensors().items()}
    )


@torch.no_grad()
def collect(job: Job, texts: Texts, checkpoint: Path) -> ActivationStatistics:
    """Run the calibration sequences through a checkpoint; the same statistics on every rank."""
    config = job.config
    geometry = read_geometry(read_json(checkpoint / "config.json"))
    positions = texts.order.reserved(config.recover.validation_sequences, config.prune.calibration_sequences)
    micro_batch = config.engine.micro_batch_sequences
    turns = micro_batches(len(positions), micro_batch, job.group.rank, job.group.world_size)
    num_tokens = 0
    with (
        open_engine(checkpoint, config.engine, job.group) as engine,
        collect_statistics(engine.module, geometry) as collector,
        job.progress("calibrate", positions.numel() * texts.train.sequence_length) as bar,
    ):
        for turn in turns:
            start, stop = turn or (0, 1)
            tokens = texts.train.sequences(positions[start:stop])
            collector.enabled = turn is not None
            engine.hidden_forward(tokens)
            num_tokens += tokens.numel() if turn is not None else 0
            bar.advance(tokens.numel() * job.group.world_size)
        return sum_over_ranks(collector.statistics(num_tokens), job.group)


def calibrate(job: Job, texts: Texts, checkpoint: Path, output: Path) -> None:
    """Write statistics.safetensors."""
    statistics = collect(job, texts, checkpoint)
    if job.group.is_main:
        save_file(statistics.to_tensors(), temporary_name(output))
        publish(temporary_name(output), output)


def read_statistics(path: Path) -> ActivationStatistics:
    return ActivationStatistics.from_tensors(load_file(path))
