"""Dimensions that kernels are known to be slow with, or to refuse. Said in the plan, before anything is cut."""

from __future__ import annotations

from transact.geometry import Geometry

FLASH_ATTENTION_MULTIPLE = 8
TUNED_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 192, 256)  # of attention kernels in FlashAttention and vLLM
TILE = 64  # rows and columns that matrix kernels work on at a time, at least
Q4_BLOCK = 32  # weights of a row that q8_0 and q4_0 scale together
K_QUANT_BLOCK = 256


def cut_rows(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """Each dimension that is cut, and how many weights the rows have whose length it decides."""
    width = geometry.num_attention_heads * geometry.head_dim
    channels = geometry.intermediate_size
    return {"head_dim": (geometry.head_dim, width), "intermediate_size": (channels, channels)}


def shape_warnings(geometry: Geometry) -> list[str]:
    """One line for each dimension that will cost speed or a format, with what to ask for instead."""
    head_dim, channels = geometry.head_dim, geometry.intermediate_size
    lines = []
    if head_dim % FLASH_ATTENTION_MULTIPLE:
        lines.append(f"head_dim {head_dim}: FlashAttention takes multiples of {FLASH_ATTENTION_MULTIPLE} only")
    elif head_dim not in TUNED_HEAD_DIMS:
        lines.append(
            f"head_dim {head_dim}: attention kernels are made for {', '.join(map(str, TUNED_HEAD_DIMS))}; others are "
            "padded or not taken on GPUs"
        )
    if channels % TILE:
        lines.append(f"intermediate_size {channels}: no multiple of {TILE}; matrix kernels do up to twice the work")
    for name, (size, row) in cut_rows(geometry).items():
        if row % Q4_BLOCK:
            lines.append(f"{name} {size}: rows of {row} weights have no q4_0 and q8_0 in llama.cpp ({Q4_BLOCK})")
        elif row % K_QUANT_BLOCK:
            lines.append(f"{name} {size}: rows of {row} weights have no K-quants in llama.cpp ({K_QUANT_BLOCK})")
    return lines
