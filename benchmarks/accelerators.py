"""Peak FLOP/s of accelerators in dense bfloat16 matrix products, without sparsity, as their makers state."""

from __future__ import annotations

from transact.geometry import Geometry

# FLOP/s by a part of the name that torch gives. The first match counts, so the more special names come first.
PEAK_FLOPS_PER_SECOND: dict[str, float] = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A40": 150e12,
    "A30": 165e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
FORWARDS_PER_STEP = 3  # the backward computes two products for each of the forward


def peak_flops_per_second(name: str) -> float | None:
    """Return the peak FLOP/s of one accelerator; None where the table does not have it."""
    return next((peak for part, peak in PEAK_FLOPS_PER_SECOND.items() if part in name), None)


def utilisation(tokens_per_s: float, geometry: Geometry, context_length: int, name: str, count: int) -> float | None:
    """Return the model FLOPs utilisation of `count` accelerators; None where the table does not have them.

    What activation checkpointing computes again does not count.
    """
    peak = peak_flops_per_second(name)
    if peak is None:
        return None
    flops_per_s = tokens_per_s * FORWARDS_PER_STEP * geometry.flops_per_token(context_length)
    return flops_per_s / (peak * count)
