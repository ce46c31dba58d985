"""Gram matrices: what the refit, the value basis and OBS are computed from.

They are large (a gigabyte a layer at 7B while they are summed), so they are taken a few layers at a time, in as
many passes over the calibration text as that needs, and every layer ends up in a file of its own, summed over the
ranks by the rank that writes it. The folder is removed once the checkpoint is sliced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from transact.engine.engine import open_engine
from transact.engine.memory import gram_passes
from transact.files import fresh_temporary_folder, publish, temporary_name
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams
from transact.models.tensor_files import write_shard
from transact.prune.refit import LayerGram
from transact.stages.calibrate import run_calibration
from transact.stages.job import Job
from transact.stages.texts import Texts


@torch.no_grad()
def collect_gram_files(job: Job, texts: Texts, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Write a file per layer into the folder `output`. Returns their sizes and digests."""
    geometry = geometry_of(checkpoint)
    passes = gram_passes(geometry, job.config.prune.method.gram_gib)
    if job.group.is_main:
        fresh_temporary_folder(output)
    job.group.barrier()
    written: dict[str, Any] = {}
    with open_engine(checkpoint, job.config.engine, job.group) as engine:
        for number, layers in enumerate(passes, start=1):
            with collect_grams(engine.module, geometry, layers) as collector:
                name = f"gram pass {number} of {len(passes)}"
                share = ((number - 1) / len(passes), number / len(passes))
                run_calibration(job, texts, collector, engine.hidden_forward, name, share)
            for layer in layers:
                job.group.turn()
                written |= _write_layer(job, layer, collector.take_gram(layer), temporary_name(output))
    digests: dict[str, Any] = {}
    for theirs in job.group.gather(written):
        digests |= theirs
    if job.group.is_main:
        publish(temporary_name(output), output)
    return digests


def _write_layer(job: Job, layer: int, gram: LayerGram, folder: Path) -> dict[str, Any]:
    """Sum one layer's matrices on the rank that owns it; that rank writes them, in float32."""
    owner = layer % job.group.world_size
    tensors = {name: tensor.to(job.group.device) for name, tensor in gram.to_tensors().items()}
    for tensor in tensors.values():
        job.group.sum_to(owner, tensor)
    if job.group.rank != owner:
        return {}
    name = file_name(layer)
    return {name: write_shard(folder / name, tensors, torch.float32)}


def file_name(layer: int) -> str:
    return f"layer_{layer:05d}.safetensors"


def read_gram(folder: Path, layer: int, device: torch.device) -> LayerGram:
    return LayerGram.from_tensors(load_file(folder / file_name(layer), device=str(device)))
