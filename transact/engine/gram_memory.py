"""Memory of Gram matrices: how many layers are summed at a time decides how often the text is calibrated on."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from transact.geometry import Geometry
from transact.pruning.refit import band_rows

GIB = 1024**3
FLOAT32_BYTES = 4
FLOAT64_BYTES = 8
FREE_SHARE = 0.8  # of free memory that is filled: allocators leave gaps, and reductions have buffers


def projected_widths(geometry: Geometry) -> tuple[int, int]:
    """Return the numbers of inputs of a layer's two output projections, which Gram matrices are of."""
    return geometry.num_attention_heads * geometry.head_dim, geometry.intermediate_size


def gram_bytes(geometry: Geometry) -> int:
    """Return the bytes of one layer's Gram matrices while they are summed, in float64."""
    return sum(width**2 for width in projected_widths(geometry)) * FLOAT64_BYTES


def gram_passes(geometry: Geometry, gram_gib: float) -> list[range]:
    """Return, for each pass over the calibration text, the layers whose Gram matrices are summed in it.

    As many layers at a time as fit into `gram_gib`, at least one, in passes of nearly equal size.
    """
    at_a_time = max(1, int(gram_gib * GIB / gram_bytes(geometry)))
    passes = math.ceil(geometry.num_layers / at_a_time)
    bounds = [round(geometry.num_layers * turn / passes) for turn in range(passes + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def passes_in_words(count: int, *, begins_with_scores: bool) -> str:
    """Return how often the text is calibrated on. begins_with_scores: the first pass sums statistics too."""
    if count == 1:
        return "1 pass, that for the scores" if begins_with_scores else "1 pass"
    return f"{count} passes, the first for the scores too" if begins_with_scores else f"{count} passes"


def gram_gib_of(free: float) -> float:
    """Return the GiB of Gram matrices to sum at a time. free: bytes, beside all else that the stage needs."""
    return FREE_SHARE * max(0.0, free) / GIB


def gram_block_bytes(geometry: Geometry) -> int:
    """Return the bytes of a band of a product: float32, and a float64 copy on CPUs, whose addition makes one."""
    widest = max(projected_widths(geometry))
    return widest * band_rows(widest) * (FLOAT32_BYTES + FLOAT64_BYTES)


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


def fitting_bytes(source: Geometry, cut: Geometry, *, corrects: bool) -> int:
    """Return the bytes of one layer's fits: its Gram matrices and the larger refit, or the larger correction later.

    Args:
        source, cut: the model before and after the cut.
        corrects: sequential calibration, which frees the Gram matrices before it corrects.
    """
    before, after = projected_widths(source), projected_widths(cut)
    refits = max(map(partial(least_squares_bytes, cut.hidden_size), before, after))
    fitted = refits + gram_disk_bytes(source) // source.num_layers
    return max(fitted, *map(partial(correction_bytes, cut.hidden_size), after)) if corrects else fitted


def gram_disk_bytes(geometry: Geometry) -> int:
    """Return the bytes of all layers' Gram matrices as files: they are summed in float64 and written in float32."""
    return geometry.num_layers * gram_bytes(geometry) * FLOAT32_BYTES // FLOAT64_BYTES
