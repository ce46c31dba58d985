"""Bytes of activations: of a token in the layer at work, and of what is kept for the backward."""

from __future__ import annotations

import math
from itertools import accumulate

from transact.config.machines import EngineConfig
from transact.engine.gram_memory import FLOAT32_BYTES, FLOAT64_BYTES
from transact.geometry import Geometry
from transact.pruning.criteria import Criteria

BYTES_BY_DTYPE = {"float32": 4, "bfloat16": 2}


def forward_bytes(geometry: Geometry, width: int) -> float:
    """Return the bytes of one token in the layer at work.

    Measured in the MLP: gate, its activation and up beside the hidden states.
    """
    return (3 * geometry.intermediate_size + 7 * geometry.hidden_size) * width


def watched_bytes(geometry: Geometry, width: int) -> float:
    """Return the bytes of one token where a hook sums the squares of the MLP's channels.

    The channels, their squares in float32, and of bfloat16 channels a float32 copy.
    """
    copies = FLOAT32_BYTES * (2 if width == 2 else 1)
    return geometry.intermediate_size * (width + copies) + 7 * geometry.hidden_size * width


def statistics_bytes(geometry: Geometry, criteria: Criteria) -> int:
    """Return the bytes of what calibration sums for the scores, in float64, of every layer."""
    shapes = [each.shape(geometry) for each in criteria.statistics(geometry)]
    return geometry.num_layers * sum(map(math.prod, shapes)) * FLOAT64_BYTES


def _layer_bytes(geometry: Geometry, dtype: str, *, is_frozen: bool = False) -> float:
    """Return the bytes of one token that one layer keeps for its backward.

    Inputs of norms and projections, q, k, v and attention output, gate, up and their product; in bfloat16 a norm keeps
    its input in float32. Of frozen weights no gradient is computed, for which half of the hidden states are kept.
    """
    heads = 2 * (geometry.num_attention_heads + geometry.num_key_value_heads)
    hidden_states = 3 if is_frozen else 6
    elements = hidden_states * geometry.hidden_size + heads * geometry.head_dim + 4 * geometry.intermediate_size
    width = BYTES_BY_DTYPE[dtype]
    return elements * width + (FLOAT32_BYTES * geometry.hidden_size if width == 2 else 0)


def activation_bytes(
    geometry: Geometry, engine: EngineConfig, tokens: int, *, added_width: int = 0, is_frozen: bool = False
) -> tuple[float, float]:
    """Return the bytes kept for the backward, and those that its worst moment adds.

    With checkpointing a hidden state per layer is kept, and one layer at a time is recomputed. The backward of a layer
    begins when those of the layers behind it are freed.

    Args:
        added_width: elements of a token that adapters keep besides, in each layer.
        is_frozen: no weight gets a gradient.
    """
    width = BYTES_BY_DTYPE[engine.dtype]
    kept, at_work = [], []
    for layer in map(geometry.of_layer, range(geometry.num_layers)):
        of_layer = _layer_bytes(layer, engine.dtype, is_frozen=is_frozen) + added_width * width
        gradients = 2 * (layer.intermediate_size + layer.hidden_size) * width
        kept.append(layer.hidden_size * width if engine.recomputes else of_layer)
        at_work.append(of_layer + gradients if engine.recomputes else gradients)
    end = 3 * geometry.hidden_size * width  # around the last norm
    highest = max(map(sum, zip(accumulate(kept), at_work, strict=True)))
    return tokens * (sum(kept) + end), tokens * (highest - sum(kept))
