"""How many bytes a rank needs at its peak, in closed form. An estimate: allocators and libraries add to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise

from transact.config import LOGIT_CHUNK_ELEMENTS, MethodConfig, RunConfig
from transact.geometry import Geometry

GIB = 1024**3
FLOAT32_BYTES = 4
FLOAT64_BYTES = 8
OPTIMIZER_STATES = 2  # AdamW: exp_avg, exp_avg_sq
GATHERED_LAYERS = 2  # the one that computes and the one being fetched
LOGIT_COPIES = 3  # logits in float32, their logarithms, their gradient
BYTES_BY_DTYPE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one rank, by what they hold."""

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    gram: float
    teacher: float

    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def total(self) -> float:
        return sum(self.parts().values())


def estimate_memory(
    geometry: Geometry, config: RunConfig, ranks: int, *, training: bool, parent: Geometry | None = None
) -> MemoryEstimate:
    """The peak of one rank, in bytes, for calibration or for a training step.

    parent: the dense model, which distillation holds besides.

    ZeRO stage 1 divides the optimizer by the ranks, stage 2 the gradients too, stage 3 the weights too.
    """
    engine = config.engine
    stage = engine.zero_stage
    width = BYTES_BY_DTYPE[engine.dtype]
    parameters = geometry.parameters()
    tokens = engine.micro_batch_sequences * config.data.sequence_length
    # The bfloat16 engine keeps a float32 master besides the states.
    states = OPTIMIZER_STATES + (engine.dtype != "float32") if training else 0
    return MemoryEstimate(
        weights=parameters * width / (ranks if stage == 3 else 1),
        gathered=_gathered_parameters(geometry) * width if stage == 3 else 0,
        gradients=parameters * width / (ranks if stage >= 2 else 1) if training else 0,
        optimizer=parameters * states * FLOAT32_BYTES / (ranks if stage >= 1 else 1),
        activations=_activation_bytes(geometry, config, tokens, width, training=training),
        logits=_logit_bytes(config, tokens * geometry.vocab_size) if training else 0,
        gram=0 if training else gram_peak_bytes(geometry, config.prune.method),
        teacher=_teacher_bytes(parent, config, ranks, tokens, width) if training and parent is not None else 0,
    )


def gram_peak_bytes(geometry: Geometry, method: MethodConfig) -> int:
    """Gram matrices that one rank sums at the same time; 0 where the method needs none."""
    if not method.needs_gram():
        return 0
    return max(map(len, gram_passes(geometry, method.gram_gib))) * gram_bytes(geometry)


def hidden_stream_bytes(geometry: Geometry, config: RunConfig, ranks: int) -> float:
    """Hidden states that sequential calibration keeps in CPU memory of one rank: of the dense and of the cut model."""
    tokens = config.prune.calibration_sequences * config.data.sequence_length
    return 2 * tokens * geometry.hidden_size * FLOAT32_BYTES / ranks


def _logit_bytes(config: RunConfig, elements: int) -> float:
    """The output layer works on a chunk at a time; distillation makes the teacher's logits beside it."""
    models = 1 if config.recover.objective == "cross_entropy" else 2
    return min(elements, LOGIT_CHUNK_ELEMENTS) * FLOAT32_BYTES * LOGIT_COPIES * models


def _teacher_bytes(parent: Geometry, config: RunConfig, ranks: int, tokens: int, width: int) -> float:
    """The dense parent: sharded weights, two gathered layers, its output layer whole, its final hidden states."""
    if config.recover.objective == "cross_entropy":
        return 0
    is_sharded = config.engine.zero_stage == 3
    whole = parent.vocab_size * parent.hidden_size + (_gathered_parameters(parent) if is_sharded else 0)
    sharded = parent.parameters() / (ranks if is_sharded else 1)
    return (whole + sharded + tokens * parent.hidden_size) * width


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


def _gathered_parameters(geometry: Geometry) -> float:
    layer = geometry.transitional_parameters() / geometry.num_layers
    return max(GATHERED_LAYERS * layer, geometry.vocab_size * geometry.hidden_size)


def _activation_bytes(geometry: Geometry, config: RunConfig, tokens: int, width: int, *, training: bool) -> float:
    """Saved for the backward: a hidden state per layer with checkpointing, and one whole layer in either case."""
    heads = geometry.num_attention_heads + 2 * geometry.num_key_value_heads
    # Inputs of norms and projections, q, k, v and attention output, gate, up and their product.
    one_layer = 6 * geometry.hidden_size + (heads + geometry.num_attention_heads) * geometry.head_dim
    one_layer += 4 * geometry.intermediate_size
    if not training:
        return tokens * width * one_layer
    if config.engine.activation_checkpointing:
        return tokens * width * (geometry.num_layers * geometry.hidden_size + one_layer)
    return tokens * width * geometry.num_layers * one_layer
