"""plan.json: everything that is forecast, as plain values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transact.config import RunConfig
from transact.engine.memory import GIB, gram_disk_bytes, gram_passes, gram_peak_bytes, hidden_stream_bytes
from transact.estimate.disk import disk_bytes
from transact.estimate.duration import duration, work
from transact.estimate.machines import accelerator, memory_limit_gib, num_ranks
from transact.estimate.memory import host_bytes, memory_moments, other_checkpointing, peak_bytes, remedies
from transact.export.shapes import shape_warnings
from transact.geometry import Geometry
from transact.models.folder import declared_config, is_at_hand
from transact.models.llama import read_geometry
from transact.rounds import (
    Round,
    calibration_warning,
    final_geometries,
    pruning_rounds,
    split_candidates,
    stage_names,
    tokens_per_batch,
)
from transact.runs.run_record import read_record
from transact.stages.preflight import check_settings, with_sequence_length
from transact.stages.variant import find_cut

FEW_STEPS = 10  # of recovery in a round
CUT_DIMENSIONS = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")


def forecast(config: RunConfig) -> dict[str, Any]:
    """
    Raises:
        ValueError: the request cannot be met; one line.
    """
    described, ranks = declared_config(config.model), num_ranks(config)
    config = with_sequence_length(config, described)
    check_settings(config, described, ranks)
    parent = read_geometry(described)
    rounds = pruning_rounds(config, parent)
    ends = final_geometries(config, parent)
    known = accelerator(config)
    taken = _taken_over(config, parent)
    return {
        "name": config.name,
        "model": config.model.path,
        "is_model_at_hand": is_at_hand(config.model),
        "ranks": ranks,
        "accelerator": None if known is None else known.name,
        "stages": [each for each in stage_names(config) if each not in taken],
        "taken_over": taken,
        "dense": _model(config, parent, parent),
        "rounds": [_round(config, each, parent) for each in rounds],
        "split_candidates": _candidates(config, parent),
        "warnings": [
            *filter(None, [calibration_warning(config, parent)]),
            *_step_warnings(rounds, tokens_per_batch(config)),
            *_shape_warnings(parent, ends),
        ],
        "text": _text(config, described, rounds),
        "tokens": sum(each.tokens for each in rounds),
        "tokens_per_batch": tokens_per_batch(config),
        "calibration": _calibration(config, parent, ranks),
        "memory": _memory(config, parent, rounds, ranks),
        "disk_bytes": disk_bytes(config, parent, rounds),
        "flops": work(config, parent, rounds, taken),
        "duration": duration(config, parent, rounds, taken),
    }


def _taken_over(config: RunConfig, parent: Geometry) -> list[str]:
    """Stages of a variant that are there already, and the passes over Gram matrices before the cut.

    Raises:
        ValueError: the variant's cut is not there, or is another one.
    """
    if config.recover.variant is None:
        return []
    asked = replace(config, mode="prune")
    record = read_record(Path(config.output_dir)) or {}
    stages = record["cut"]["stages"] if "cut" in record else list(find_cut(asked, parent).stages)
    cut = [each.rpartition("/")[0] for each in stages if each.endswith("/slice")]
    return [each for each in stage_names(asked) if each in stages or each in {f"{name}/gram" for name in cut}]


def _model(config: RunConfig, geometry: Geometry, parent: Geometry) -> dict[str, Any]:
    return {
        "geometry": geometry.to_dict(),
        "parameters": geometry.parameters(),
        "removed_fraction": 1 - geometry.parameters() / parent.parameters(),
        "removed_fraction_of_layers": 1 - geometry.transitional_parameters() / parent.transitional_parameters(),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        "flops_per_token": geometry.flops_per_token(config.data.sequence_length),
    }


def _round(config: RunConfig, each: Round, parent: Geometry) -> dict[str, Any]:
    steps = each.tokens // tokens_per_batch(config)
    trained = {"tokens": each.tokens, "steps": steps, "learning_rate": each.learning_rate}
    return {"round": each.number, **_model(config, each.geometry, parent), **trained}


def _candidates(config: RunConfig, parent: Geometry) -> list[dict[str, int]]:
    if config.prune.split != "auto":
        return []
    found = split_candidates(config.prune, parent)
    return [{name: getattr(each, name) for name in CUT_DIMENSIONS} for each in found]


def _shape_warnings(parent: Geometry, ends: list[Geometry]) -> list[str]:
    """About the dimensions that the run may end with; what the parent has already is nobody's choice here."""
    kept = tuple(f"{name} {getattr(parent, name)}:" for name in CUT_DIMENSIONS)
    found = dict.fromkeys(line for end in ends for line in shape_warnings(end))
    return [line for line in found if not line.startswith(kept)]


def _step_warnings(rounds: list[Round], per_batch: int) -> list[str]:
    fewest = min((each.tokens // per_batch for each in rounds if each.tokens), default=FEW_STEPS)
    if fewest >= FEW_STEPS:
        return []
    steps = f"{fewest} step{'' if fewest == 1 else 's'}"
    return [
        f"a recovery of {steps} teaches little: more recover.tokens, or a smaller recover.batch_sequences or "
        "data.sequence_length, makes more steps"
    ]


def _text(config: RunConfig, described: dict[str, Any], rounds: list[Round]) -> dict[str, Any]:
    """Tokens that are taken from the text, by what for, as far as it has them."""
    length = config.data.sequence_length
    return {
        "sequence_length": length,
        "longest_sequence": described.get("max_position_embeddings"),
        "tokens": {
            "recovery": sum(each.tokens for each in rounds),
            "validation": config.recover.validation_sequences * length,
            "calibration": config.prune.calibration_sequences * length,
            "held out": config.data.evaluation_sequences * length,
        },
    }


def _calibration(config: RunConfig, parent: Geometry, ranks: int) -> dict[str, Any]:
    """Of the first, largest round."""
    method = config.prune.method
    found: dict[str, Any] = {"sequences": config.prune.calibration_sequences, "gram_passes": []}
    if method.needs_gram():
        found["gram_passes"] = [len(layers) for layers in gram_passes(parent, method.gram_gib)]
        found["gram_bytes_per_rank"] = gram_peak_bytes(parent, method)
        found["gram_bytes_on_disk"] = gram_disk_bytes(parent)
    if method.refit == "sequential":
        found["hidden_state_bytes_per_rank"] = round(hidden_stream_bytes(parent, config, ranks))
    return found


def _memory(config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int) -> dict[str, Any]:
    limit = memory_limit_gib(config)
    peak = peak_bytes(config, parent, rounds, ranks) / GIB
    fits = None if limit is None else peak <= limit
    helps = remedies(config, parent, rounds, ranks, limit) if limit is not None and not fits else []
    return {
        "zero_stage": config.engine.zero_stage,
        "moments": memory_moments(config, parent, rounds, ranks),
        "other_checkpointing": other_checkpointing(config, parent, rounds, ranks),
        "host_bytes": host_bytes(config, parent, rounds, ranks),
        "peak_gib": round(peak, 3),
        "limit_gib": limit,
        "fits": fits,
        "would_fit_with": helps,
    }
