"""Memory of Gram matrices: how many layers are summed at a time decides how often the text is calibrated on."""

from __future__ import annotations

import math
from itertools import pairwise

from transact.geometry import Geometry
from transact.pruning.refit import GRAM_BLOCK_ELEMENTS

GIB = 1024**3
FLOAT32_BYTES = 4
FLOAT64_BYTES = 8
FREE_SHARE = 0.8  # of free memory that is filled: allocators leave gaps, and reductions have buffers


def gram_bytes(geometry: Geometry) -> int:
    """Return the bytes of one layer's Gram matrices while they are summed, in float64."""
    width = geometry.num_attention_heads * geometry.head_dim
    return (width**2 + geometry.intermediate_size**2) * FLOAT64_BYTES


def gram_passes(geometry: Geometry, gram_gib: float) -> list[range]:
    """Return, for each pass over the calibration text, the layers whose Gram matrices are summed in it.

    As many layers at a time as fit into `gram_gib`, at least one, in passes of nearly equal size.
    """
    at_a_time = max(1, int(gram_gib * GIB / gram_bytes(geometry)))
    passes = math.ceil(geometry.num_layers / at_a_time)
    bounds = [round(geometry.num_layers * turn / passes) for turn in range(passes + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def gram_gib_of(free: float) -> float:
    """Return the GiB of Gram matrices to sum at a time. free: bytes, beside all else that the stage needs."""
    return FREE_SHARE * max(0.0, free) / GIB


def gram_block_bytes(geometry: Geometry) -> int:
    """Return the bytes of a block of a product: float32, and a float64 copy on CPUs, whose addition makes one."""
    width = max(geometry.num_attention_heads * geometry.head_dim, geometry.intermediate_size)
    return min(width**2, GRAM_BLOCK_ELEMENTS) * (FLOAT32_BYTES + FLOAT64_BYTES)


def gram_peak_bytes(geometry: Geometry, gram_gib: float) -> int:
    """Return the bytes of Gram matrices that one rank sums at the same time, and of a block that is being added."""
    return max(map(len, gram_passes(geometry, gram_gib))) * gram_bytes(geometry) + gram_block_bytes(geometry)


def least_squares_bytes(outputs: int, inputs: int, kept: int) -> int:
    """Return the bytes of a refit beside the Gram matrix that it is given: damped, its parts, and the solution."""
    solved = max(2 * kept**2 + 2 * outputs * kept, kept**2 + outputs * (inputs + kept))
    return (inputs**2 + inputs * kept + solved) * FLOAT64_BYTES


def correction_bytes(outputs: int, kept: int) -> int:
    """Return the bytes of a correction: sums of both halves of the text and of the whole, and eigenvectors of one."""
    return 6 * (kept**2 + outputs * kept) * FLOAT64_BYTES


def gram_disk_bytes(geometry: Geometry) -> int:
    """Return the bytes of all layers' Gram matrices as files: they are summed in float64 and written in float32."""
    return geometry.num_layers * gram_bytes(geometry) * FLOAT32_BYTES // FLOAT64_BYTES
