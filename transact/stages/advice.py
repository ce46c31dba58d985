"""What a request may ask for and hardly wants: told by the run and by its estimate, refused by neither."""

from __future__ import annotations

from collections.abc import Sequence

from transact.config.pruning import PruneConfig
from transact.config.run import RunConfig
from transact.geometry import Geometry
from transact.rounds import Outline, Round, shape_evaluations, tokens_per_batch

TOKENS_PER_CHANNEL = 10  # of calibration text; on SmolLM2-135M 5 cost twice the perplexity of 10, and 20 gained 4 %
FEW_STEPS = 10  # of recovery in a round
NARROWED_OF_A_LAYER = 2  # shapes that a search measures before it changes several layers at once
ALLOCATIONS = 2  # that follow from them


def run_warnings(config: RunConfig, whole: Outline) -> list[str]:
    """Return what is allowed and hardly wanted: too little text, too few steps or shapes."""
    found = (
        calibration_warning(config, whole.parent),
        _steps_warning(whole.rounds, tokens_per_batch(config)),
        _shapes_warning(config.prune, whole.parent),
    )
    return [each for each in found if each is not None]


def _shapes_warning(config: PruneConfig, parent: Geometry) -> str | None:
    narrowed = NARROWED_OF_A_LAYER * parent.num_layers
    if config.shapes == "uniform" or shape_evaluations(config, parent) > narrowed + ALLOCATIONS:
        return None
    return (
        f"prune.shape_evaluations={config.shape_evaluations} is too few for the search, which begins with up to "
        f"{narrowed:,} shapes that differ in one layer: layers may stay alike"
    )


def _steps_warning(rounds: Sequence[Round], per_batch: int) -> str | None:
    fewest = min((each.tokens // per_batch for each in rounds if each.tokens), default=FEW_STEPS)
    if fewest >= FEW_STEPS:
        return None
    return (
        f"a recovery of {fewest} step{'' if fewest == 1 else 's'} teaches little: more recover.tokens, or a smaller "
        "recover.batch_sequences or data.sequence_length, makes more steps"
    )


def calibration_warning(config: RunConfig, parent: Geometry) -> str | None:
    """Return a warning if the calibration text is too short, else None.

    The least squares of a layer have as many unknowns as channels.
    """
    method, tokens = config.prune.method, config.prune.calibration_sequences * config.data.sequence_length
    channels = max(parent.intermediate_size, parent.num_attention_heads * parent.head_dim)
    needed = TOKENS_PER_CHANNEL * channels
    if tokens >= needed or not method.needs_gram():
        return None
    sequences = -(-needed // config.data.sequence_length)
    return (
        f"{tokens:,} calibration tokens are few for {channels:,} channels: about {needed:,} are needed "
        f"(prune.calibration_sequences={sequences})"
    )
