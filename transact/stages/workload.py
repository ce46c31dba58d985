"""The work of every stage of a run in FLOPs, from dimensions alone: estimates and the time left rest on it.

Products of a forward and a backward are counted exactly. Factorisations and eliminations, whose FLOPs take longer, are
counted with the weights below; reading and writing files is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transact.config.run import RunConfig
from transact.distributed.environment import environment_world_size
from transact.engine.gram_memory import gram_passes
from transact.engine.memory import assumed_gram_gib, sums_grams_in_calibration
from transact.engine.trained import adapter_parameters
from transact.geometry import Geometry
from transact.pruning.criteria import Criteria
from transact.pruning.pair_gains import POSITIONS
from transact.pruning.refit import GRAM_BANDS
from transact.rounds import Outline, Round, Stage, shape_evaluations, steps_to_validate, tokens_per_batch

CHECKED_TOKENS = 512  # whose logits are compared at export

# Time of one such FLOP relative to one of a forward, from one run of a 135M-parameter model on two busy CPU cores.
GRAM_WEIGHT = 2.0  # float64 sums
GRAM_SHARE = (1 + 1 / GRAM_BANDS) / 2  # of the products of a symmetric matrix that are computed
ELIMINATION_WEIGHT = 4.5
REFIT_WEIGHT = 4.0
PAIR_GAINS_WEIGHT = 4.0
HALVES_WEIGHT = 24.0  # eigenvectors of two matrices and products with them, in cubes of their size


def stage_flops(config: RunConfig, outline: Outline) -> dict[Stage, float]:
    """Return the FLOPs of every stage of the outline, in their order; 0 where they are not known beforehand (tasks)."""
    context, parent, last = config.data.sequence_length, outline.parent, outline.rounds[-1].geometry
    evaluated = config.data.evaluation_sequences * context
    texts = len(config.eval.texts) * config.eval.text_sequences * context
    found = {
        Stage("evaluate", 0): evaluated * float(parent.flops_per_token(context)),
        Stage("tasks"): texts * float(parent.flops_per_token(context) + last.flops_per_token(context)),
        Stage("efficiency"): _efficiency_flops(config, parent, last),
        Stage("export"): 2.0 * CHECKED_TOKENS * last.flops_per_token(context),  # the check's, through two models
    }
    for each in outline.rounds:
        found |= {Stage(kind, each.number): flops for kind, flops in _round_flops(config, outline, each).items()}
    return {stage: found.get(stage, 0.0) for stage in outline.stages}


def _round_flops(config: RunConfig, outline: Outline, each: Round) -> dict[str, float]:
    parent, before = outline.parent, outline.before(each.number)
    context, method = config.data.sequence_length, config.prune.method
    calibrated = config.prune.calibration_sequences * context
    # Weights are frozen: a backward is the work of one forward.
    passes = 2 if Criteria.of(method).needs_gradients else 1
    summed, passed = _gram_flops(config, before, is_begun=sums_grams_in_calibration(config, each.number))
    after = each.geometry
    teacher = None if config.recover.objective == "cross_entropy" or config.mode == "pretrain" else parent
    return {
        "calibrate": passes * calibrated * float(before.flops_per_token(context))
        + _pair_gains_flops(config, before)
        + summed,
        "gram": passed,
        "split": _split_flops(config, outline) if each.number == 1 else 0.0,
        "shapes": _shapes_flops(config, outline) if each.number == 1 else 0.0,
        "select": 0.0 if _is_measured_split(config, each) else _elimination_flops(config, before, [after]),
        "slice": _slice_flops(config, before, after),
        "recover": _recover_flops(config, each, teacher),
        "evaluate": config.data.evaluation_sequences * context * float(after.flops_per_token(context)),
    }


def _shapes_flops(config: RunConfig, outline: Outline) -> float:
    """Return the FLOPs of a search for shapes: what it measures is about as large as the run's last model.

    Every shape is a forward over the validation text and two fits: a move is one, an allocation or an exchange many.
    """
    before, after = outline.parent, outline.rounds[-1].geometry
    validated = config.recover.validation_sequences * config.data.sequence_length
    output = 2 * before.hidden_size * before.vocab_size  # the parent's logits are made each time
    forward = validated * float(after.flops_per_token(config.data.sequence_length) + output)
    fit = 2 * _refit_flops(config, before, after) / before.num_layers
    smallest = replace(before, intermediate_size=1)
    begun = (
        _elimination_flops(config, before, [smallest])
        + 2 * _refit_flops(config, before, after)
        + _nested_errors_flops(before)
        + validated * before.flops_per_token(config.data.sequence_length)
    )
    return begun + shape_evaluations(config.prune, before) * (forward + num_ranks(config) * fit)


def _is_measured_split(config: RunConfig, each: Round) -> bool:
    """Return whether the round takes over the selection of the split: a search for shapes changes it."""
    is_only = config.prune.rounds == 1 and each.number == 1
    return config.prune.split == "auto" and config.prune.shapes == "uniform" and is_only


def _recover_flops(config: RunConfig, each: Round, teacher: Geometry | None) -> float:
    if not each.tokens:
        return 0.0
    context = config.data.sequence_length
    steps = each.tokens // tokens_per_batch(config)
    validations = 1 + len(steps_to_validate(steps, config.recover))
    validated = validations * config.recover.validation_sequences * context
    # The sliced model is evaluated here, where it is loaded for its first validation.
    evaluated = 0 if config.mode == "pretrain" else config.data.evaluation_sequences * context
    forward = (validated + evaluated) * each.geometry.flops_per_token(context)
    adapters = adapter_parameters(each.geometry, config.recover)
    trained = each.geometry.training_flops_per_token(context, teacher, adapters=adapters)
    return float(each.tokens * trained + forward)


def _pair_gains_flops(config: RunConfig, geometry: Geometry) -> float:
    """Return the FLOPs of the covariances that gains follow from: at a few queries of a sequence, over half of it."""
    if not Criteria.of(config.prune.method).gives_gains(geometry):
        return 0.0
    keys = config.prune.calibration_sequences * POSITIONS * config.data.sequence_length / 2
    heads = geometry.num_layers * geometry.num_attention_heads
    return PAIR_GAINS_WEIGHT * keys * heads * 2 * geometry.head_dim**2


def _gram_flops(config: RunConfig, geometry: Geometry, *, is_begun: bool) -> tuple[float, float]:
    """Return the FLOPs of Gram matrices in calibration, where their first pass is in it, and in their own stage."""
    context, method = config.data.sequence_length, config.prune.method
    if not method.needs_gram():
        return 0.0, 0.0
    calibrated = config.prune.calibration_sequences * context
    passes = len(gram_passes(geometry, assumed_gram_gib(geometry, config, num_ranks(config))))
    width = geometry.num_attention_heads * geometry.head_dim
    sums = 2 * geometry.num_layers * GRAM_SHARE * (width**2 + geometry.intermediate_size**2)
    summed = calibrated * GRAM_WEIGHT * sums / passes
    of_pass = calibrated * geometry.flops_per_token(context) + summed
    return (summed, (passes - 1) * of_pass) if is_begun else (0.0, passes * of_pass)


def elimination_share(config: RunConfig, outline: Outline) -> float:
    """Return the share of a split's work that goes into the choice of channels, which comes first."""
    return _elimination_flops(config, outline.parent, outline.candidates) / _split_flops(config, outline)


def _split_flops(config: RunConfig, outline: Outline) -> float:
    """Return the FLOPs of a split: one elimination for all candidates, then each is cut and validated."""
    parent, candidates, context = outline.parent, outline.candidates, config.data.sequence_length
    if not candidates:
        return 0.0
    validated = config.recover.validation_sequences * context
    each = (_refit_flops(config, parent, one) + validated * one.flops_per_token(context) for one in candidates)
    return _elimination_flops(config, parent, candidates) + sum(each)


def _elimination_flops(config: RunConfig, geometry: Geometry, targets: Sequence[Geometry]) -> float:
    """Return the FLOPs of greedy OBS down to the smallest target: the inverse, then an update per block of channels."""
    channels = geometry.intermediate_size
    kept = min(each.intermediate_size for each in targets)
    if config.prune.method.channels != "obs" or kept == channels:
        return 0.0
    updates = 2 * (channels**3 - kept**3) / 3 + geometry.hidden_size * (channels**2 - kept**2)
    return ELIMINATION_WEIGHT * geometry.num_layers * (2 * channels**3 + updates)


def _refit_flops(config: RunConfig, before: Geometry, after: Geometry) -> float:
    """Return the FLOPs of the refit: a factorisation of what is kept, and products with the Gram matrix and weights."""
    if config.prune.method.refit == "none":
        return 0.0
    flops = 0.0
    for whole, kept in _projections(before, after):
        flops += kept**3 + 2 * whole * before.hidden_size * kept + 2 * kept**2 * before.hidden_size
    return REFIT_WEIGHT * before.num_layers * flops


def _nested_errors_flops(before: Geometry) -> float:
    """Return the FLOPs of the errors of all widths: a Cholesky factorisation, and its product with the weights."""
    flops = sum(inputs**3 / 3 + 2 * before.hidden_size * inputs**2 for inputs, _ in _projections(before, before))
    return REFIT_WEIGHT * before.num_layers * flops


def _slice_flops(config: RunConfig, before: Geometry, after: Geometry) -> float:
    """Return the FLOPs of a cut; sequential calibration adds one run of both models, sums and fits of corrections.

    There all ranks are at the same layer: they share the text, but each makes every fit.
    """
    refits = _refit_flops(config, before, after)
    if config.prune.method.refit != "sequential":
        return refits
    context = config.data.sequence_length
    runs = before.flops_per_token(context) + after.flops_per_token(context)
    sums, halves = 0.0, 0.0
    for _, kept in _projections(before, after):
        sums += 2 * before.num_layers * kept * (GRAM_SHARE * kept + before.hidden_size)
        halves += HALVES_WEIGHT * kept**3
    tokens = config.prune.calibration_sequences * context
    fits = refits + REFIT_WEIGHT * before.num_layers * halves
    return tokens * (runs + GRAM_WEIGHT * sums) + num_ranks(config) * fits


def num_ranks(config: RunConfig) -> int:
    """Return estimate.num_ranks, or else the ranks of the launch settings or of torchrun's environment."""
    return config.estimate.num_ranks or max(config.launch.num_ranks, environment_world_size())


def _projections(before: Geometry, after: Geometry) -> tuple[tuple[int, int], ...]:
    """Return the inputs of o_proj and of down_proj before and after the cut."""
    heads = (before.num_attention_heads * before.head_dim, after.num_attention_heads * after.head_dim)
    return heads, (before.intermediate_size, after.intermediate_size)


def _efficiency_flops(config: RunConfig, parent: Geometry, pruned: Geometry) -> float:
    """Return the FLOPs of all turns of both models; a generated token, which reads all weights, counts as ten."""
    asked = config.eval.efficiency
    tokens = sum(
        batch * (prompt + 10 * new)
        for batch in asked.batch_sizes
        for prompt in asked.prompt_tokens
        for new in asked.new_tokens
    )
    context = max(asked.prompt_tokens)
    return float(asked.turns * tokens * (parent.flops_per_token(context) + pruned.flops_per_token(context)))
