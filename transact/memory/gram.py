"""What calibration holds beside the model: Gram matrices, and the hidden states of sequential calibration."""

from __future__ import annotations

import math
from itertools import pairwise

from transact.config import MethodConfig, RunConfig
from transact.geometry import Geometry

GIB = 1024**3
FLOAT32_BYTES = 4
FLOAT64_BYTES = 8


def gram_bytes(geometry: Geometry) -> int:
    """Bytes of one layer's Gram matrices while they are summed, in float64."""
    width = geometry.num_attention_heads * geometry.head_dim
    return (width**2 + geometry.intermediate_size**2) * FLOAT64_BYTES


def gram_passes(geometry: Geometry, gram_gib: float) -> list[range]:
    """Layers whose Gram matrices are summed in the same pass over the calibration text, for each pass.

    As many at a time as fit into `gram_gib`, one at least, in passes of nearly equal size.
    """
    at_a_time = max(1, int(gram_gib * GIB / gram_bytes(geometry)))
    passes = math.ceil(geometry.num_layers / at_a_time)
    bounds = [round(geometry.num_layers * turn / passes) for turn in range(passes + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def gram_peak_bytes(geometry: Geometry, method: MethodConfig) -> int:
    """Gram matrices that one rank sums at the same time; 0 where the method needs none."""
    if not method.needs_gram():
        return 0
    return max(map(len, gram_passes(geometry, method.gram_gib))) * gram_bytes(geometry)


def gram_disk_bytes(geometry: Geometry) -> int:
    """Of all layers, as files: they are summed in float64 and written in float32."""
    return geometry.num_layers * gram_bytes(geometry) * FLOAT32_BYTES // FLOAT64_BYTES


def hidden_stream_bytes(geometry: Geometry, config: RunConfig, ranks: int) -> float:
    """Hidden states that sequential calibration keeps in CPU memory of one rank: of the dense and of the cut model."""
    tokens = config.prune.calibration_sequences * config.data.sequence_length
    return 2 * tokens * geometry.hidden_size * FLOAT32_BYTES / ranks
