"""Peak memory of a rank in closed form: the bytes at its worst moment, a sum of terms with a formula each.

P parameters, N ranks, b bytes of the computation's dtype (4 or 2). ZeRO stage 1 divides the optimizer by the ranks,
stage 2 the gradients too, stage 3 the weights too (Rajbhandari et al., arXiv 1910.02054). What DeepSpeed 0.19 adds to
that was measured, and is marked so below. `benchmarks.memory_model` compares the formulas with what ranks really
allocate; allocators and libraries add to it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from transact.config.accelerators import BY_NAME
from transact.config.machines import FLASH_ATTENTION, EngineConfig
from transact.config.pruning import LOGIT_CHUNK_ELEMENTS
from transact.config.run import RunConfig
from transact.engine.activation_memory import (
    BYTES_BY_DTYPE,
    activation_bytes,
    forward_bytes,
    statistics_bytes,
    watched_bytes,
)
from transact.engine.gram_memory import (
    FLOAT32_BYTES,
    GIB,
    fitting_bytes,
    gram_block_bytes,
    gram_gib_of,
    gram_peak_bytes,
    projected_widths,
)
from transact.engine.trained import Trained
from transact.geometry import Geometry
from transact.pruning.criteria import Criteria

UNKNOWN_FREE_GIB = 8.0  # what is assumed to be free for Gram matrices where no setting says how much memory there is


def memory_limit_gib(config: RunConfig) -> float | None:
    """Return the GiB that a rank of the estimated machines can use; None where no setting says."""
    accelerator, limit = config.estimate.accelerator, config.estimate.memory_gib
    return limit or (None if accelerator is None else BY_NAME[accelerator].memory_gib)


def sums_grams_in_calibration(config: RunConfig, number: int) -> bool:
    """Return whether the calibration of a round sums Gram matrices in its own forwards.

    Not where it differentiates, which needs the memory, nor where points of a sweep share statistics and matrices:
    another point may have made one of them.
    """
    method, is_shared = config.prune.method, config.share_dir is not None and number == 1
    return method.needs_gram() and not is_shared and not Criteria.of(method).needs_gradients


def assumed_gram_gib(geometry: Geometry, config: RunConfig, ranks: int) -> float:
    """Return prune.method.gram_gib, or where it is null what a rank would find free on the estimated machines."""
    if config.prune.method.gram_gib is not None:
        return config.prune.method.gram_gib
    limit = memory_limit_gib(config)
    if limit is None:
        return UNKNOWN_FREE_GIB
    needed = _forward(geometry, config, ranks, is_watched=True).total() + gram_block_bytes(geometry)
    return gram_gib_of(limit * GIB - needed)


def bytes_beside_grams(geometry: Geometry, config: RunConfig, ranks: int) -> float:
    """Return the bytes that summing Gram matrices takes beside them and the weights of an engine that is open."""
    estimate = _forward(geometry, config, ranks, is_watched=True)
    return estimate.total() - estimate.weights - estimate.loading + gram_block_bytes(geometry)


STAGE_KINDS = ("evaluate", "calibrate", "gram", "shapes", "slice", "recover")  # those whose memory is estimated
# Sizes of a projection that a search for shapes keeps in the machine's memory, the best shape's and the one that is
# tried, besides the one that computes.
REMEMBERED_FITS = 2
ADAM_MOMENTS = 2  # exp_avg, exp_avg_sq
TRAINED_COPIES = 4  # in a training checkpoint: weights, both moments, and the best weights seen, in float32
WHOLE_BUCKET_ELEMENTS = 500_000_000  # the bucket where all gradients are reduced at once
TAUGHT_BYTES = GIB  # of hidden states that the teacher computes ahead
IN_FLIGHT = 0.35  # measured, a share of the gradients being reduced: flat buffers beside them, some freed late
# Measured, a share of the weights being fetched, on two ranks and on more: flat buffers. Fewer linger at the worst
# moment where a rank's part of them is smaller, and where the backward fetches a layer again to recompute it.
LINGERING = {"forward": (0.75, 0.45), "kept": (0.95, 0.45), "recomputed": (0.3, 0.0)}
# Float32 tensors of tokens x vocab_size at the worst moment: logits, their logarithms, their gradient; distillation
# has those of the teacher, and the products of both, beside them.
LOGIT_COPIES = {"cross_entropy": 3, "distillation": 7, "mixed": 7}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one rank at its worst moment, by what they hold.

    Attributes:
        weights: of the model, in the computation's dtype.
        gathered: whole weights of the layers at work, and those on their way (stage 3).
        gradients: of a global batch, while it is being summed.
        optimizer: Adam's moments, and float32 masters where DeepSpeed keeps them.
        communication: buckets that gradients are reduced in, and what of them is on its way.
        activations: that the backward needs, or of the layer at work, and the masks of documents.
        loading: float32 weights while a bfloat16 model is made, in the machine's memory; on CPUs alone.
        logits: of a chunk of tokens, and what the loss makes of them.
        update: what the optimizer's step holds beside the above, where that moment is worse than the backward.
        statistics: what calibration sums for the scores.
        gram: Gram matrices in calibration, and the least squares that they are for.
        teacher: the dense parent in distillation.
    """

    weights: float = 0.0
    gathered: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    communication: float = 0.0
    activations: float = 0.0
    loading: float = 0.0
    logits: float = 0.0
    update: float = 0.0
    statistics: float = 0.0
    gram: float = 0.0
    teacher: float = 0.0

    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def total(self) -> float:
        return sum(self.parts().values())


def estimate_memory(
    geometry: Geometry, config: RunConfig, ranks: int, kind: str, *, parent: Geometry | None = None
) -> MemoryEstimate:
    """Return the bytes of one rank at its worst moment, by what they hold.

    Args:
        geometry: of the model that the stage works on, or that it makes.
        kind: of stage: "evaluate", "calibrate", "gram", "shapes", "slice" or "recover".
        parent: the dense model, which distillation holds as well, and which is the largest that is sliced.
    """
    assert kind in STAGE_KINDS, kind
    if kind == "slice":
        return _slicing(geometry, config, parent or geometry)
    if kind == "shapes":
        return _searching(geometry, config, ranks, parent or geometry)
    if kind == "recover":
        return _training(geometry, config, ranks, parent)
    if kind == "calibrate" and Criteria.of(config.prune.method).needs_gradients:
        return _differentiating(geometry, config, ranks)
    gram = 0
    is_summed = sums_grams_in_calibration(config, 1) if kind == "calibrate" else kind == "gram"
    if is_summed and config.prune.method.needs_gram():
        gram = gram_peak_bytes(geometry, assumed_gram_gib(geometry, config, ranks))
    return _forward(geometry, config, ranks, gram=gram, is_watched=kind == "calibrate")


def _forward(
    geometry: Geometry, config: RunConfig, ranks: int, *, gram: int = 0, is_watched: bool = False
) -> MemoryEstimate:
    width = BYTES_BY_DTYPE[config.engine.dtype]
    per_token = max(forward_bytes(geometry, width), watched_bytes(geometry, width) if is_watched else 0)
    activations = float(_tokens(config) * per_token + _mask_elements(config) * width)
    at_work = {"activations": activations, "gram": float(gram)}
    if is_watched:
        at_work["statistics"] = float(statistics_bytes(geometry, Criteria.of(config.prune.method)))
    return _without_optimizer(geometry, config, ranks, at_work)


def _searching(geometry: Geometry, config: RunConfig, ranks: int, parent: Geometry) -> MemoryEstimate:
    """Estimate a forward with its fits, of no more than whole projections, and what the parent says of the text.

    A fit is made between two forwards, when no layer is gathered, with the matrices of one layer.
    """
    width = BYTES_BY_DTYPE[config.engine.dtype]
    kept = 1 + (REMEMBERED_FITS if is_on_cpu(config) else 0)
    fits = kept * geometry.num_layers * geometry.hidden_size * sum(projected_widths(geometry)) * width
    validated = config.recover.validation_sequences * config.data.sequence_length / ranks
    taught = (parent.vocab_size + validated) * parent.hidden_size * width
    forward = _forward(geometry, config, ranks)
    logits = _logit_bytes(config, geometry, "distillation")
    at_work = {"gathered": forward.gathered, "activations": forward.activations, "logits": logits}
    fitting = {"gram": float(fitting_bytes(geometry, geometry, corrects=False))}
    worst = _larger(at_work, fitting)
    worst["gram"] = worst.get("gram", 0.0) + fits
    return replace(forward, **{"gathered": 0.0, "activations": 0.0} | worst, teacher=taught)


def _slicing(geometry: Geometry, config: RunConfig, source: Geometry) -> MemoryEstimate:
    """Estimate a layer at work in float32, before and after the cut: no engine is open."""
    method = config.prune.method
    layers = [each.largest_layer() for each in (source, geometry)]
    if method.refit == "none":
        return MemoryEstimate(weights=sum(layers) * FLOAT32_BYTES)
    corrects = method.refit == "sequential"
    fits = fitting_bytes(source, geometry, corrects=corrects)
    if not corrects:
        return MemoryEstimate(weights=sum(layers) * FLOAT32_BYTES, gram=fits)
    # Modules stand beside the tensors that were loaded into them.
    activations = _tokens(config) * forward_bytes(source, FLOAT32_BYTES) + _mask_elements(config) * FLOAT32_BYTES
    return MemoryEstimate(weights=2 * sum(layers) * FLOAT32_BYTES, activations=activations, gram=fits)


def _without_optimizer(geometry: Geometry, config: RunConfig, ranks: int, at_work: dict[str, float]) -> MemoryEstimate:
    """Estimate an engine without an optimizer; there DeepSpeed has no stages 1 and 2, so weights are whole."""
    engine = config.engine
    width = BYTES_BY_DTYPE[engine.dtype]
    is_shared = engine.zero_stage == 3 and ranks > 1
    is_made_whole = width == 2 and is_on_cpu(config) and not is_shared
    loading = {"loading": float(geometry.parameters() * FLOAT32_BYTES if is_made_whole else 0)}
    return MemoryEstimate(
        weights=geometry.parameters() * width / (ranks if is_shared else 1),
        gathered=_fetched_elements(geometry, engine, ranks) * width if is_shared else 0,
        **_larger(at_work, loading),
    )


def _differentiating(geometry: Geometry, config: RunConfig, ranks: int) -> MemoryEstimate:
    """Estimate a backward through frozen weights with all activations: hooks read them, so none is recomputed."""
    engine = replace(config.engine, activation_checkpointing=False)
    added_width = _repeated_width(geometry, config)
    stored, gradients = activation_bytes(geometry, engine, _tokens(config), added_width=added_width, is_frozen=True)
    stored += _mask_elements(config) * BYTES_BY_DTYPE[engine.dtype]
    logits = _logit_bytes(config, geometry, "cross_entropy")
    at_work = {"activations": stored + max(logits, gradients) - logits, "logits": logits}
    return _without_optimizer(geometry, config, ranks, at_work)


def _training(geometry: Geometry, config: RunConfig, ranks: int, parent: Geometry | None) -> MemoryEstimate:
    engine = config.engine
    width, stage = BYTES_BY_DTYPE[engine.dtype], engine.zero_stage
    trained = Trained.of(geometry, config.recover)
    added_width = trained.added_width + _repeated_width(geometry, config)
    stored, recomputed = activation_bytes(geometry, engine, _tokens(config), added_width=added_width)
    stored += _mask_elements(config) * width
    # At stage 3 a layer's gradients are reduced once all of them are there.
    of_layer = trained.of_layer * width if stage == 3 else 0
    logits = _logit_bytes(config, geometry, config.recover.objective)
    throughout = {
        "weights": (geometry.parameters() + trained.beside) * width / (ranks if stage == 3 else 1),
        "optimizer": 0.0 if is_offloaded(config) else optimizer_bytes(trained.parameters, engine, ranks),
        "communication": _communication_bytes(trained, engine, ranks),
        "teacher": 0.0 if parent is None else _teacher_bytes(parent, config, ranks),
    }
    backward = {
        "gathered": _gathered_bytes(geometry, trained.beside, engine, ranks),
        # The logits are freed before the layers are differentiated.
        "activations": stored + max(logits, recomputed + of_layer) - logits,
        "logits": logits,
    }
    # At stage 3 a rank's part of the gradients is allocated all the time.
    (throughout if stage == 3 else backward)["gradients"] = _gradient_bytes(trained, engine, ranks)
    mapped = geometry.parameters() if is_on_cpu(config) or not trained.beside else 0
    update = 0.0 if is_offloaded(config) else _update_bytes(trained.parameters, mapped, engine, ranks)
    return MemoryEstimate(**throughout, **_larger(backward, {"update": update}))


def _larger(usual: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Return, of two moments that do not coincide, the one that needs more."""
    return other if sum(other.values()) > sum(usual.values()) else usual


def _tokens(config: RunConfig) -> int:
    return config.engine.micro_batch * config.data.sequence_length


def _mask_elements(config: RunConfig) -> int:
    """Return the elements of the masks that keep a micro-batch's tokens to their documents; all layers share them."""
    is_masked = config.data.packing == "documents" and config.engine.attention not in FLASH_ATTENTION
    return _tokens(config) * config.data.sequence_length if is_masked else 0


def _repeated_width(geometry: Geometry, config: RunConfig) -> int:
    """Return the elements of a token that a layer keeps besides where a mask has keys and values repeated."""
    heads = geometry.num_attention_heads - geometry.num_key_value_heads
    return 2 * heads * geometry.head_dim if _mask_elements(config) else 0


def is_offloaded(config: RunConfig) -> bool:
    """Return whether the optimizer's state is in another memory than the computation."""
    return config.engine.offload_optimizer is not None and not is_on_cpu(config)


def is_on_cpu(config: RunConfig) -> bool:
    """Return whether ranks compute in the machine's memory, as far as the settings say."""
    return config.engine.device != "cuda" and config.estimate.accelerator is None


def optimizer_bytes(parameters: int, engine: EngineConfig, ranks: int) -> float:
    """Return 8 P for the moments, and 4 P for masters: in bfloat16, and at stages 1 to 3 in float32 too."""
    masters = engine.dtype != "float32" or engine.zero_stage > 0
    states = ADAM_MOMENTS + masters
    return parameters * states * FLOAT32_BYTES / (ranks if engine.zero_stage >= 1 else 1)


def _gradient_bytes(trained: Trained, engine: EngineConfig, ranks: int) -> float:
    """Return the bytes of a global batch's gradients: float32, which stage 0 in bfloat16 alone has not."""
    width = BYTES_BY_DTYPE[engine.dtype] if engine.zero_stage == 0 else FLOAT32_BYTES
    return trained.parameters * width / (ranks if engine.zero_stage >= 2 else 1)


def _update_bytes(parameters: int, mapped: int, engine: EngineConfig, ranks: int) -> float:
    """Return the bytes that the optimizer's step adds; measured: gradients once more in float32 and flat.

    At stage 0 in bfloat16 the first step is the worst, where moments and masters are made, while the files of the
    weights are still mapped. mapped: weights in them, where that counts.
    """
    width = BYTES_BY_DTYPE[engine.dtype]
    if engine.zero_stage == 0:
        return parameters * 6.0 + mapped * 4.0 if width == 2 else parameters * 5.0
    if engine.zero_stage == 3:
        return parameters * (6.0 if width == 2 else 4.0) / ranks
    return parameters * 8.0 / ranks


def _communication_bytes(trained: Trained, engine: EngineConfig, ranks: int) -> float:
    """Return b times the bucket that gradients are reduced in.

    Stages 1 and 2 hold the largest parameter's gradient beside it, stage 2 a part of its gradients twice. Stage 0, and
    in bfloat16 stage 1, reduce them all at once.
    """
    width, parameters = BYTES_BY_DTYPE[engine.dtype], trained.parameters
    if engine.zero_stage == 3:
        return engine.reduce_bucket_elements * width
    if engine.zero_stage == 0 or (engine.zero_stage == 1 and engine.dtype == "bfloat16"):
        accumulated = width if engine.zero_stage == 0 else FLOAT32_BYTES
        return IN_FLIGHT * min(parameters, WHOLE_BUCKET_ELEMENTS) * accumulated if ranks > 1 else 0
    twice = IN_FLIGHT * parameters / ranks if engine.zero_stage == 2 else 0
    bucket = min(engine.reduce_bucket_elements, parameters) + trained.largest
    return (twice + (bucket if ranks > 1 else 0)) * width


def _gathered_bytes(geometry: Geometry, beside: int, engine: EngineConfig, ranks: int) -> float:
    """Return the bytes of whole weights at stage 3 in training.

    `engine.live_elements` of them stay from the forward to the backward. beside: parameters of adapters.
    """
    if engine.zero_stage != 3 or ranks == 1:
        return 0
    live = min(geometry.parameters() + beside, engine.live_elements)
    kind = "recomputed" if engine.recomputes else "kept"
    embedding = geometry.vocab_size * geometry.hidden_size  # and the largest parameter, in flight as well
    return (live + _in_flight(geometry, engine, kind, ranks) + embedding) * BYTES_BY_DTYPE[engine.dtype]


def _in_flight(geometry: Geometry, engine: EngineConfig, kind: str, ranks: int) -> float:
    """Return the elements of flat buffers beside the layers being fetched. kind: of pass, as in `LINGERING`."""
    return LINGERING[kind][ranks > 2] * min(geometry.transitional_parameters(), engine.prefetch_elements)


def _fetched_elements(geometry: Geometry, engine: EngineConfig, ranks: int) -> float:
    """Return the elements of whole weights at stage 3 in inference.

    A layer is released after its use; what is fetched ahead is whole, and in flight.
    """
    layer = geometry.largest_layer()
    ahead = min(geometry.parameters(), engine.prefetch_elements)
    whole = max(ahead + layer, geometry.vocab_size * geometry.hidden_size)
    return whole + _in_flight(geometry, engine, "forward", ranks)


def _logit_bytes(config: RunConfig, geometry: Geometry, objective: str) -> float:
    """Return the bytes of logits and of what the loss makes of them.

    The output layer works on a chunk at a time; distillation makes the teacher's logits beside it.
    """
    elements = min(_tokens(config) * geometry.vocab_size, LOGIT_CHUNK_ELEMENTS)
    return elements * FLOAT32_BYTES * LOGIT_COPIES[objective]


def _teacher_bytes(parent: Geometry, config: RunConfig, ranks: int) -> float:
    """Return the bytes of the dense parent in distillation.

    Its sharded weights and those being fetched, its output layer whole, its hidden states of the micro-batches that it
    is run on together, and a copy of those that the student learns from.
    """
    if config.recover.objective == "cross_entropy":
        return 0
    engine = config.engine
    is_sharded = engine.zero_stage == 3
    elements = parent.parameters() / (ranks if is_sharded else 1)
    at_once = taught_at_once(parent, config, ranks)
    elements += (parent.vocab_size + (at_once + 1) * _tokens(config)) * parent.hidden_size
    elements += at_once * _mask_elements(config)
    if is_sharded and ranks > 1:
        elements += _in_flight(parent, engine, "forward", ranks)
    return elements * BYTES_BY_DTYPE[engine.dtype]


def taught_at_once(parent: Geometry, config: RunConfig, ranks: int) -> int:
    """Return on how many micro-batches of a step the teacher is run together: as many as `TAUGHT_BYTES` hold."""
    engine = config.engine
    in_step = config.recover.batch // (engine.micro_batch * ranks)
    elements = parent.hidden_size
    if engine.attention == "eager" or _mask_elements(config):  # each sequence has a mask
        elements += config.data.sequence_length
    fitting = int(TAUGHT_BYTES // (_tokens(config) * elements * BYTES_BY_DTYPE[engine.dtype]))
    return max(1, min(in_step, fitting))
