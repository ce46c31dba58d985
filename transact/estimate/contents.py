"""The contents of estimate.json: everything that is forecast, as plain values."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from transact.config.run import RunConfig
from transact.engine.gram_memory import (
    GIB,
    gram_disk_bytes,
    gram_passes,
    gram_peak_bytes,
)
from transact.engine.memory import (
    assumed_gram_gib,
    memory_limit_gib,
    sums_grams_in_calibration,
)
from transact.engine.trained import adapter_parameters
from transact.errors import DONE, printable, refuse, speaks
from transact.estimate.duration import accelerator, duration, ranks_per_node, work
from transact.estimate.memory import (
    memory_moments,
    other_checkpointing,
    remedies,
    settled,
)
from transact.estimate.samples import text_samples
from transact.estimate.storage import disk_bytes
from transact.estimate.text import text
from transact.files import write_json, write_text
from transact.geometry import Geometry
from transact.models.folder import declared_config, is_at_hand
from transact.pruning.limits import CUT_DIMENSIONS, KV_BYTES, PARAMETERS, shape_bounds
from transact.pruning.targets import shape_warnings
from transact.rounds import Outline, Round, Stage, shape_evaluations, tokens_per_batch
from transact.runs.run_record import LAYOUT, check_run_folder, read_record
from transact.stages.advice import run_warnings
from transact.stages.micro_batch import Moments, hidden_stream_bytes, host_bytes, moments, peak_bytes
from transact.stages.preflight import check_places, check_settings, with_batch, with_sequence_length
from transact.stages.stock_logits import layer_check_bytes, whole_check_bytes
from transact.stages.text_checks import check_hub_texts
from transact.stages.variant import find_cut
from transact.stages.workload import num_ranks


def forecast(config: RunConfig) -> dict[str, Any]:
    """Return what a run would do and need, as plain values for JSON.

    Raises:
        ValueError: the request cannot be met; one line.
    """
    described, ranks = declared_config(config.model), num_ranks(config)
    batch = config.recover.batch_sequences
    config = with_batch(with_sequence_length(config, described), ranks)
    whole = check_settings(config, described, ranks)
    config, micro_batch = settled(config, whole, ranks)
    taken = _taken_over(config, whole)
    to_do = replace(whole, stages=tuple(stage for stage in whole.stages if stage not in taken))
    parent, rounds, known = whole.parent, whole.rounds, accelerator(config)
    limits = whole.limits
    return {
        "name": config.name,
        "model": config.model.path,
        "is_model_at_hand": is_at_hand(config.model),
        "ranks": ranks,
        "accelerator": None if known is None else known.name,
        "stages": [stage.name for stage in to_do.stages],
        "taken_over": [stage.name for stage in taken],
        "dense": _model(config, parent, parent),
        "rounds": [_round(config, each, parent) for each in rounds],
        "budget": {} if limits is None else limits.compared(rounds[-1].geometry),
        "shapes": config.prune.shapes,
        "shape_range": _shape_range(config, whole),
        "shape_evaluations": shape_evaluations(config.prune, parent),
        "split_candidates": [{name: getattr(each, name) for name in CUT_DIMENSIONS} for each in whole.candidates],
        "warnings": [
            *run_warnings(config, whole),
            *_shape_warnings(whole),
        ],
        "text": _text(config, described, whole.tokens),
        "tokens": whole.tokens,
        "tokens_per_batch": tokens_per_batch(config),
        "adapters": _adapters(config, whole.rounds[0].geometry),
        "calibration": _calibration(config, to_do, ranks),
        "micro_batch": micro_batch,
        "memory": _memory(config, batch, moments(to_do), ranks, whole),
        "disk_bytes": disk_bytes(config, to_do),
        "keep_rounds": config.keep_rounds,
        "flops": work(config, to_do),
        "duration": duration(config, to_do),
    }


def _taken_over(config: RunConfig, whole: Outline) -> list[Stage]:
    """Return the stages of a variant that are there already, and the passes for Gram matrices before the cut.

    Raises:
        ValueError: the variant's cut is not there, or is another one.
    """
    if config.recover.variant is None:
        return []
    asked = replace(config, mode="prune")
    record = read_record(Path(config.output_dir)) or {}
    names = record["cut"]["stages"] if "cut" in record else list(find_cut(asked, whole).stages)
    cut = {stage.round for stage in whole.stages if stage.kind == "slice" and stage.name in names}
    return [stage for stage in whole.stages if stage.name in names or (stage.kind == "gram" and stage.round in cut)]


def _model(config: RunConfig, geometry: Geometry, parent: Geometry) -> dict[str, Any]:
    return {
        "geometry": geometry.to_dict(),
        "parameters": geometry.parameters(),
        "remove_fraction": 1 - geometry.parameters() / parent.parameters(),
        "remove_fraction_of_layers": 1 - geometry.transitional_parameters() / parent.transitional_parameters(),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        "flops_per_token": geometry.flops_per_token(config.data.sequence_length),
    }


def _round(config: RunConfig, each: Round, parent: Geometry) -> dict[str, Any]:
    steps = each.tokens // tokens_per_batch(config)
    trained = {"tokens": each.tokens, "steps": steps, "learning_rate": each.learning_rate}
    return {"round": each.number, **_model(config, each.geometry, parent), **trained}


def _shape_range(config: RunConfig, whole: Outline) -> dict[str, int | float | None] | None:
    """Return what a search for shapes may end with, whichever split it begins with; None where there is none.

    Of what a limit alone bounds it holds None.
    """
    if config.mode == "pretrain" or config.prune.shapes == "uniform":
        return None
    bounds = [bound for end in whole.ends for bound in shape_bounds(end, whole.limits, whole.ends)]
    return {
        "starts": len(whole.ends),
        "intermediate_size": whole.parent.intermediate_size,
        "num_key_value_heads": whole.parent.num_key_value_heads,
        "parameters": max((bound.most for bound in bounds if bound.size == PARAMETERS), default=None),
        "kv_bytes_per_token": max((bound.most for bound in bounds if bound.size == KV_BYTES), default=None),
    }


def _adapters(config: RunConfig, geometry: Geometry) -> dict[str, int] | None:
    """Return the size of the adapters of the first recovery, the largest; None where all weights are trained."""
    parameters = adapter_parameters(geometry, config.recover)
    return None if parameters is None else {"rank": config.recover.lora.rank, "parameters": parameters}


def _shape_warnings(whole: Outline) -> list[str]:
    """Return warnings about the dimensions that the run may end with, without those that the parent has already."""
    of_parent = {_without_row(line) for line in shape_warnings(whole.parent)}
    found = dict.fromkeys(line for end in whole.ends for line in shape_warnings(end))
    return [line for line in found if _without_row(line) not in of_parent]


def _without_row(warning: str) -> str:
    """Return a warning without the length of rows, which fewer heads change."""
    return re.sub(r"rows of \d+ weights", "rows", warning)


def _text(config: RunConfig, described: dict[str, Any], trained: int) -> dict[str, Any]:
    """Return the lengths of sequences, and the tokens that are taken from the text, by use, as far as it has them."""
    length = config.data.sequence_length
    return {
        "sequence_length": length,
        "longest_sequence": described.get("max_position_embeddings"),
        "tokens": {
            "recovery": trained,
            "validation": config.recover.validation_sequences * length,
            "calibration": config.prune.calibration_sequences * length,
            "held out": config.data.evaluation_sequences * length,
        },
    }


def _calibration(config: RunConfig, to_do: Outline, ranks: int) -> dict[str, Any]:
    """Return the passes and bytes that calibration needs for the first model that is calibrated, the largest."""
    number = next((stage.round for stage in to_do.stages if stage.kind == "calibrate" and stage.round), None)
    if number is None:
        return {"sequences": 0, "gram_passes": []}
    method, geometry = config.prune.method, to_do.before(number)
    found: dict[str, Any] = {"sequences": config.prune.calibration_sequences, "gram_passes": []}
    if method.needs_gram():
        gram_gib = assumed_gram_gib(geometry, config, ranks)
        found["gram_passes"] = [len(layers) for layers in gram_passes(geometry, gram_gib)]
        found["gram_begins_with_scores"] = sums_grams_in_calibration(config, number)
        found["gram_bytes_per_rank"] = gram_peak_bytes(geometry, gram_gib)
        found["gram_bytes_on_disk"] = gram_disk_bytes(geometry)
    if method.refit == "sequential":
        found["hidden_state_bytes_per_rank"] = round(hidden_stream_bytes(geometry, config, ranks))
    return found


def _memory(config: RunConfig, batch: int | None, stages: Moments, ranks: int, whole: Outline) -> dict[str, Any]:
    """Return what a rank and a node need. batch: recover.batch_sequences as it was asked for."""
    limit, parent, exported = memory_limit_gib(config), whole.parent, whole.rounds[-1].geometry
    peak = peak_bytes(config, parent, stages, ranks) / GIB
    fits = None if limit is None else peak <= limit
    asked = replace(config, recover=replace(config.recover, batch_sequences=batch))
    helps = remedies(asked, parent, stages, ranks, limit) if limit is not None and not fits else []
    host, on_a_node = host_bytes(config, parent, stages, ranks), ranks_per_node(config)
    return {
        "zero_stage": config.engine.zero_stage,
        "moments": memory_moments(config, parent, stages, ranks),
        "other_checkpointing": other_checkpointing(config, parent, stages, ranks),
        "host_bytes": host,
        "ranks_per_node": on_a_node,
        "host_bytes_of_a_node": on_a_node * sum(host.values()),
        "export_check_bytes": {
            "whole": round(whole_check_bytes(exported)),
            "by_layer": round(layer_check_bytes(exported)),
        },
        "peak_gib": round(peak, 3),
        "limit_gib": limit,
        "fits": fits,
        "would_fit_with": helps,
    }


def show_estimate(config: RunConfig) -> int:
    """Write estimate.json and estimate.txt on rank 0, print the text, and return the exit code.

    Nothing else is written, and a run in the same folder ignores both files.
    """
    if not speaks():
        return DONE
    try:
        check_places(config)
        check_run_folder(config.output_dir, config.share_dir)
        estimate = forecast(config)
        check_hub_texts(config)
        estimate["texts"] = text_samples(config, estimate["text"]["sequence_length"], estimate["tokens"])
        said = text(estimate)
        folder = Path(config.output_dir)
        write_json(folder / "estimate.json", {"layout": LAYOUT} | estimate)
        write_text(folder / "estimate.txt", said)
    except (ValueError, OSError) as error:
        return refuse(error)
    print(f"{printable(said)}written: {folder / 'estimate.txt'}, {folder / 'estimate.json'}")
    return DONE
