"""Calibrate: sums over the transitional activations and their Gram matrices, added up over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from transact.data.order import micro_batches
from transact.distributed.process import ProcessGroup
from transact.engine.free_memory import free_bytes_of_rank
from transact.engine.gram_memory import GIB, gram_gib_of, gram_passes, passes_in_words
from transact.engine.memory import bytes_beside_grams
from transact.files import fresh_temporary_folder, publish, temporary_name
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.hooks import Collector, collect_grams, collect_statistics
from transact.models.identity import UnusableModel
from transact.models.shard_writer import write_shard
from transact.pruning.criteria import Criteria
from transact.pruning.refit import LayerGram
from transact.pruning.statistics import ActivationStatistics, Statistic
from transact.stages.job import Job
from transact.stages.texts import Texts


def sum_over_ranks(statistics: ActivationStatistics, group: ProcessGroup) -> ActivationStatistics:
    """Return the statistics of all ranks' tokens, on every rank (collective): sums merge by addition."""
    return ActivationStatistics.from_tensors(
        {name: group.sum(tensor) for name, tensor in statistics.to_tensors().items()}
    )


def calibration_positions(job: Job, texts: Texts) -> torch.Tensor:
    """Return (calibration_sequences,) positions in the training text, behind those for validation."""
    return texts.order.reserved(job.config.recover.validation_sequences, job.config.prune.calibration_sequences)


def run_calibration(
    job: Job,
    texts: Texts,
    collector: Collector,
    forward: Callable[[torch.Tensor, torch.Tensor | None], None],
    description: str,
    share: tuple[float, float] = (0.0, 1.0),
) -> int:
    """Send this rank's part of the calibration text through `forward` and return the number of tokens that counted.

    Collective: a rank without a micro-batch in the last turn runs one sequence that does not count. forward: of tokens
    and their `position_ids`. share: of the stage, as in `Job.progress`.
    """
    positions = calibration_positions(job, texts)
    micro_batch = job.config.engine.micro_batch
    num_tokens = 0
    with job.progress(description, positions.numel() * texts.train.sequence_length, share=share) as bar:
        for turn in micro_batches(len(positions), micro_batch, job.group.rank, job.group.world_size):
            start, stop = turn or (0, 1)
            own = positions[start:stop]
            tokens = texts.train.sequences(own)
            collector.enabled = turn is not None
            forward(tokens, texts.train.position_ids(own))
            num_tokens += tokens.numel() if turn is not None else 0
            bar.advance(tokens.numel() * job.group.world_size)
    return num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SummedGrams:
    """Gram matrices of a first pass over the calibration text, summed on this rank and not written yet.

    Attributes:
        passes: the layers of every pass; those of the first are summed.
        collector: that holds them.
    """

    passes: list[range]
    collector: Collector


def collect(
    job: Job,
    texts: Texts,
    model_folder: Path,
    needed: Sequence[Statistic] | None = None,
    *,
    with_grams: bool = False,
) -> tuple[ActivationStatistics, SummedGrams | None]:
    """Run the calibration sequences through a model and return what is summed (collective).

    Args:
        needed: what to sum; None: what the job's method reads.
        with_grams: sum Gram matrices in the same forwards, of as many layers as fit.

    Returns:
        The statistics, the same on every rank, and this rank's Gram matrices where they are asked for.

    Raises:
        UnusableModel: an activation is infinite or not a number; names the layer.
    """
    geometry = geometry_of(model_folder)
    if needed is None:
        needed = Criteria.of(job.config.prune.method).statistics(geometry)
    needs_gradients = any(each.needs_gradients for each in needed)
    engine_config = job.config.engine
    are_whole = texts.train.position_ids(calibration_positions(job, texts)[:1]) is None
    assert not (needs_gradients and with_grams), "a backward leaves no room for Gram matrices"
    if needs_gradients:  # fused kernels rotate in place what scores read, and flash attention's backward varies
        engine_config = engine_config.repeatable()
    with (
        torch.set_grad_enabled(needs_gradients),
        job.borrow(model_folder, engine_config) as engine,
        collect_statistics(engine.module, geometry, needed, are_whole=are_whole) as collector,
    ):
        passes = choose_passes(job, geometry, begins_with_scores=True) if with_grams else []
        forward = engine.differentiate if needs_gradients else engine.hidden_forward
        with collect_grams(engine.module, geometry, passes[0] if passes else range(0), collector):
            num_tokens = run_calibration(job, texts, collector, forward, "calibrate")
        statistics = sum_over_ranks(collector.statistics(num_tokens), job.group)
        collector.forget_statistics()
    broken = statistics.broken_layer(needed)
    if broken is not None:
        raise UnusableModel(f"{model_folder}: {broken_words(*broken)}")
    return statistics, SummedGrams(passes=passes, collector=collector) if passes else None


def broken_words(layer: int, statistic: Statistic) -> str:
    """Describe for the user what `ActivationStatistics.broken_layer` found."""
    what = "gradients" if statistic.needs_gradients else "activations"
    module = "MLP" if statistic.last_observed() == "intermediate" else "attention"
    return (
        f"{what} of layer {layer} are infinite or not numbers ({statistic.name}) on the calibration text, first of all "
        f"in its {module}: the weights are damaged, or engine.dtype is too narrow for them"
    )


def calibrate(
    job: Job, texts: Texts, model_folder: Path, output: Path, *, with_grams: bool = False
) -> SummedGrams | None:
    """Collect the statistics of a model and write statistics.safetensors (collective).

    Args:
        with_grams: sum Gram matrices in the same forwards, of as many layers as fit, and return them.
    """
    statistics, grams = collect(job, texts, model_folder, with_grams=with_grams)
    if job.group.is_main:
        save_file(statistics.to_tensors(), temporary_name(output))
        publish(temporary_name(output), output)
    return grams


def read_statistics(path: Path) -> ActivationStatistics:
    return ActivationStatistics.from_tensors(load_file(path))


@torch.no_grad()
def collect_gram_files(
    job: Job, texts: Texts, model_folder: Path, output: Path, summed: SummedGrams | None = None
) -> dict[str, Any]:
    """Write the Gram matrices of each layer into a file of the folder `output` (collective).

    Args:
        summed: what calibration has summed of them on its way.

    Returns:
        The size and digest of each file, by name.
    """
    geometry, writing = geometry_of(model_folder), temporary_name(output)
    if job.group.is_main:
        fresh_temporary_folder(output)
    job.group.barrier()
    written: dict[str, Any] = {}
    if summed is not None:
        written |= _write_pass(job, summed.passes[0], summed.collector, writing)
    if summed is None or len(summed.passes) > 1:
        with job.borrow(model_folder) as engine:
            passes = choose_passes(job, geometry) if summed is None else summed.passes
            left = passes if summed is None else passes[1:]
            for done, layers in enumerate(left):
                with collect_grams(engine.module, geometry, layers) as collector:
                    name = f"gram pass {len(passes) - len(left) + done + 1} of {len(passes)}"
                    share = (done / len(left), (done + 1) / len(left))
                    run_calibration(job, texts, collector, engine.hidden_forward, name, share)
                written |= _write_pass(job, layers, collector, writing)
    digests: dict[str, Any] = {}
    for theirs in job.group.gather(written):
        digests |= theirs
    if job.group.is_main:
        publish(temporary_name(output), output)
    return digests


def choose_passes(job: Job, geometry: Geometry, *, begins_with_scores: bool = False) -> list[range]:
    """Return the layers of every pass for Gram matrices, and say what they follow from (collective).

    Equal on all ranks. The engine is open, so what is free now is beside its weights. begins_with_scores: as of
    `passes_in_words`.
    """
    asked = job.config.prune.method.gram_gib
    if asked is None:
        needed = bytes_beside_grams(geometry, job.config, job.group.world_size)
        (least,) = job.group.maxima(-free_bytes_of_rank(job.group.device))
        passes = gram_passes(geometry, gram_gib_of(-least - needed))
        reason = f"{-least / GIB:.1f} GiB are free on the rank that has the least"
    else:
        passes, reason = gram_passes(geometry, asked), f"prune.method.gram_gib={asked:g}"
    turns = passes_in_words(len(passes), begins_with_scores=begins_with_scores)
    largest = max(map(len, passes))
    job.say(f"gram matrices: {turns}, at most {largest} of {geometry.num_layers} layers at a time: {reason}")
    return passes


def _write_pass(job: Job, layers: range, collector: Collector, folder: Path) -> dict[str, Any]:
    """Write the matrices of a pass, layers of as many ranks as there are at a time (collective)."""
    written: dict[str, Any] = {}
    for first in range(0, len(layers), job.group.world_size):
        job.group.turn()
        written |= _write_layers(job, layers[first : first + job.group.world_size], collector, folder)
    return written


def _write_layers(job: Job, layers: range, collector: Collector, folder: Path) -> dict[str, Any]:
    """Sum the matrices of a layer for each rank, which then write them in float32 at the same time (collective)."""
    own = {}
    for owner, layer in enumerate(layers):
        gram = collector.take_gram(layer).to_tensors()
        tensors = {name: tensor.to(job.group.device) for name, tensor in gram.items()}
        for tensor in tensors.values():
            job.group.sum_to(owner, tensor)
        if job.group.rank == owner:
            own[file_name(layer)] = tensors
    return {name: write_shard(folder / name, tensors, torch.float32) for name, tensors in own.items()}


def file_name(layer: int) -> str:
    return f"layer_{layer:05d}.safetensors"


def read_gram(folder: Path, layer: int, device: torch.device) -> LayerGram:
    return LayerGram.from_tensors(load_file(folder / file_name(layer), device=str(device)))
