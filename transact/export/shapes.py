"""Dimensions that kernels are known to be slow with, or to refuse. Said in the plan, before anything is cut."""

from __future__ import annotations

from transact.geometry import Geometry
from transact.prune.targets import (
    ATTENTION_HEAD_DIMS,
    FLASH_ATTENTION_MULTIPLE,
    K_QUANT_BLOCK,
    Q4_BLOCK,
    TILE,
)


def cut_rows(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """Each dimension that is cut, and how many weights the rows have whose length it decides."""
    width = geometry.num_attention_heads * geometry.head_dim
    channels = geometry.intermediate_size
    return {"head_dim": (geometry.head_dim, width), "intermediate_size": (channels, channels)}


def float16_rows(geometry: Geometry) -> dict[str, int]:
    """Projections that llama.cpp's quantised types leave in float16, and how long their rows are."""
    rows = {"o_proj": geometry.num_attention_heads * geometry.head_dim, "down_proj": geometry.intermediate_size}
    return {name: row for name, row in rows.items() if row % Q4_BLOCK}


def shape_warnings(geometry: Geometry) -> list[str]:
    """One line for each dimension that will cost speed or a format, with what to ask for instead."""
    head_dim, channels = geometry.head_dim, geometry.intermediate_size
    lines = []
    if head_dim % FLASH_ATTENTION_MULTIPLE:
        lines.append(f"head_dim {head_dim}: FlashAttention takes multiples of {FLASH_ATTENTION_MULTIPLE} only")
    elif head_dim not in ATTENTION_HEAD_DIMS:
        lines.append(
            f"head_dim {head_dim}: attention kernels are made for {', '.join(map(str, ATTENTION_HEAD_DIMS))}; others "
            "are padded on GPUs, and vLLM does not take them on CPUs"
        )
    if channels % TILE:
        lines.append(f"intermediate_size {channels}: no multiple of {TILE}; matrix kernels do up to twice the work")
    for name, (size, row) in cut_rows(geometry).items():
        if row % Q4_BLOCK:
            lines.append(f"{name} {size}: rows of {row} weights stay f16 in llama.cpp's q4_0 and q8_0 ({Q4_BLOCK})")
        elif row % K_QUANT_BLOCK:
            lines.append(f"{name} {size}: rows of {row} weights have no K-quants in llama.cpp ({K_QUANT_BLOCK})")
    return lines
