"""Peak FLOPs and memory of accelerators, from their makers' data sheets: for MFU, and for estimates.

Peaks are those of dense bfloat16 matrix products. Data sheets often print twice as much, for 2:4 sparse matrices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TERA = 1e12


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One kind of accelerator.

    Attributes:
        name: how a configuration names it.
        reported: lower-case words, all of which are in the driver's name of the device.
        peak_flops: bfloat16 FLOPs per second.
        memory_gib: GiB that a process can use at best.
    """

    name: str
    reported: tuple[str, ...]
    peak_flops: float
    memory_gib: float


# The first match counts, so narrower names stand before wider ones.
ACCELERATORS = (
    Accelerator(name="b200", reported=("b200",), peak_flops=2250 * TERA, memory_gib=178),
    Accelerator(name="h200_nvl", reported=("h200", "nvl"), peak_flops=835 * TERA, memory_gib=139),
    Accelerator(name="h200", reported=("h200",), peak_flops=989.4 * TERA, memory_gib=139),
    Accelerator(name="h100_pcie", reported=("h100", "pcie"), peak_flops=756 * TERA, memory_gib=79),
    Accelerator(name="h100_nvl", reported=("h100", "nvl"), peak_flops=835 * TERA, memory_gib=93),
    Accelerator(name="h100", reported=("h100",), peak_flops=989.4 * TERA, memory_gib=79),
    Accelerator(name="a100_80gb", reported=("a100", "80gb"), peak_flops=312 * TERA, memory_gib=79),
    Accelerator(name="a100_40gb", reported=("a100",), peak_flops=312 * TERA, memory_gib=39),
    Accelerator(name="l40s", reported=("l40s",), peak_flops=362 * TERA, memory_gib=44),
    Accelerator(name="l40", reported=("l40",), peak_flops=181 * TERA, memory_gib=44),
    Accelerator(name="a40", reported=("a40",), peak_flops=149.7 * TERA, memory_gib=44),
    Accelerator(name="a10", reported=("a10",), peak_flops=125 * TERA, memory_gib=22),
    Accelerator(name="l4", reported=("l4",), peak_flops=121 * TERA, memory_gib=22),
    Accelerator(name="rtx_4090", reported=("rtx", "4090"), peak_flops=165.2 * TERA, memory_gib=23),
    Accelerator(name="rtx_3090", reported=("rtx", "3090"), peak_flops=71 * TERA, memory_gib=23),
    Accelerator(name="mi300x", reported=("mi300x",), peak_flops=1307.4 * TERA, memory_gib=191),
)
BY_NAME = {each.name: each for each in ACCELERATORS}


def reported_as(device_name: str) -> Accelerator | None:
    """Return the accelerator that a driver calls `device_name` ("NVIDIA H100 80GB HBM3"); None if it is not known.

    Whole words count: an A10G is no A10, and slower.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    return next((each for each in ACCELERATORS if words.issuperset(each.reported)), None)


def model_flops_utilisation(flops_per_token: float, tokens_per_second: float, peak_flops: float) -> float:
    """Return MFU: the share of one accelerator's peak that the model itself needs (PaLM, arXiv 2204.02311, appendix B).

    Args:
        flops_per_token: of forward and backward, without what activation checkpointing computes again.
        tokens_per_second: throughput of one accelerator.
        peak_flops: FLOPs per second of one accelerator.
    """
    return flops_per_token * tokens_per_second / peak_flops
