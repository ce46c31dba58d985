"""Throughput, MFU and memory of training: figures for the log."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from transact.config.accelerators import model_flops_utilisation, reported_as
from transact.distributed.process import ProcessGroup
from transact.engine.gram_memory import GIB
from transact.stages.recover.health import ALLOCATOR_RETRIES, UNUSED_GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The constants that turn the seconds of a step into throughput and MFU.

    Attributes:
        tokens: of a step, over all ranks.
        world_size: ranks; one GPU each, where there are GPUs.
        flops_per_token: that a step needs: of the student forward and backward, and of the teacher forward.
        peak_flops: of one rank's accelerator, per second; None on a CPU and on one whose peak is not known.
    """

    tokens: int
    world_size: int
    flops_per_token: int
    peak_flops: float | None

    def figures(self, step_seconds: float, data_seconds: float) -> dict[str, float]:
        """Return the figures of one step. data_seconds: the part of it that was spent on reading text."""
        rate = self.tokens / step_seconds
        figures = {
            "perf/tokens_per_s": rate,
            "perf/tokens_per_s_per_gpu": rate / self.world_size,
            "perf/step_s": step_seconds,
            "perf/data_s": data_seconds,
        }
        if self.peak_flops is not None:
            figures["perf/mfu"] = model_flops_utilisation(self.flops_per_token, rate / self.world_size, self.peak_flops)
        return figures


def peak_flops_of(device: torch.device) -> float | None:
    """Return the device's peak bfloat16 FLOPs per second; None where that is not known."""
    if device.type != "cuda":
        return None
    accelerator = reported_as(torch.cuda.get_device_name(device))
    return None if accelerator is None else accelerator.peak_flops


def allocator_figures(stats: Mapping[str, int]) -> dict[str, float]:
    """Return how often the allocator had to give its cache back to the GPU, and the GiB that it holds unused.

    Args:
        stats: as `torch.cuda.memory_stats` returns them.
    """
    reserved, allocated = (stats.get(f"{name}_bytes.all.current", 0) for name in ("reserved", "allocated"))
    return {ALLOCATOR_RETRIES: float(stats.get("num_alloc_retries", 0)), UNUSED_GIB: (reserved - allocated) / GIB}


def memory_figures(group: ProcessGroup) -> dict[str, float]:
    """Return peak memory since the process began, in GiB, and figures of the GPU's allocator (collective).

    Each is of the rank where it is largest.
    """
    peaks = {"mem/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}
    if group.device.type == "cuda":
        peaks["mem/allocated_peak_gib"] = torch.cuda.max_memory_allocated(group.device) / GIB
        peaks["mem/reserved_peak_gib"] = torch.cuda.max_memory_reserved(group.device) / GIB
        peaks |= allocator_figures(torch.cuda.memory_stats(group.device))
    return dict(zip(peaks, group.maxima(*peaks.values()), strict=True))
