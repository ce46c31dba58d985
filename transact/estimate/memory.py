"""Memory of a rank in every stage that may need the most, whether it fits, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from transact.config.machines import EngineConfig
from transact.config.run import RunConfig
from transact.engine.gram_memory import FLOAT32_BYTES, GIB
from transact.engine.memory import estimate_memory, hidden_stream_bytes, is_offloaded, optimizer_bytes
from transact.geometry import Geometry
from transact.models.shard_writer import WRITE_BUFFER_BYTES
from transact.rounds import Outline, Stage
from transact.stages.preflight import check_ranks

MOST_RANKS = 1024
WORST = ("calibrate", "gram", "recover")


Moments = list[tuple[Stage, Geometry]]  # stages that may need the most memory, and the model that each works on


def moments(outline: Outline) -> Moments:
    """Return the stages that may need the most memory, and the model that each works on.

    These are the first calibration, whose model is the largest, with its pass for Gram matrices, and every recovery; an
    evaluation where none of them is left to do.
    """
    found = [(stage, outline.at_work(stage)) for stage in outline.stages if stage.kind in WORST]
    first = min((stage.round or 0 for stage, _ in found if stage.kind == "calibrate"), default=None)
    found = [(stage, geometry) for stage, geometry in found if stage.kind == "recover" or stage.round == first]
    last = outline.rounds[-1]
    return found or [(Stage("evaluate", last.number), last.geometry)]


def memory_moments(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> list[dict[str, Any]]:
    """Return a row per moment: "stage", "activation_checkpointing", "bytes" by component, "total_bytes"."""
    return [_row(stage, config, geometry, ranks, parent) for stage, geometry in stages]


def other_checkpointing(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> dict[str, Any] | None:
    """Return the first recovery's row with activation checkpointing if the run has none, and without if it has."""
    other = not config.engine.activation_checkpointing
    otherwise = replace(config, engine=replace(config.engine, activation_checkpointing=other))
    for stage, geometry in _trained(stages):
        return _row(stage, otherwise, geometry, ranks, parent)
    return None


def _trained(stages: Moments) -> Moments:
    return [(stage, geometry) for stage, geometry in stages if stage.kind == "recover"]


def _row(stage: Stage, config: RunConfig, geometry: Geometry, ranks: int, parent: Geometry) -> dict[str, Any]:
    estimate = estimate_memory(geometry, config, ranks, stage.kind, parent=parent)
    return {
        "stage": stage.name,
        "activation_checkpointing": config.engine.activation_checkpointing if stage.kind == "recover" else None,
        "bytes": {name: round(size) for name, size in estimate.parts().items() if size},
        "total_bytes": round(estimate.total()),
    }


def host_bytes(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> dict[str, int]:
    """Return the bytes of CPU memory that a rank needs besides.

    These are the best weights seen in a recovery, twice, for while better ones replace them, the buffer through which
    a training checkpoint is written, an offloaded optimizer, and the hidden states of sequential calibration.
    """
    found = {}
    for _, geometry in _trained(stages)[:1]:
        found["best_weights"] = 2 * round(geometry.parameters() * FLOAT32_BYTES / ranks)
        found["write_buffer"] = WRITE_BUFFER_BYTES
        if is_offloaded(config):
            # Gradients are copied there for the step, in float32.
            state = optimizer_bytes(geometry.parameters(), config.engine, ranks)
            found["offloaded_optimizer"] = round(state + geometry.parameters() * FLOAT32_BYTES / ranks)
    if config.prune.method.refit == "sequential" and any(stage.kind == "calibrate" for stage, _ in stages):
        found["hidden_states"] = round(hidden_stream_bytes(parent, config, ranks))
    return found


def peak_bytes(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> float:
    """Return the bytes of the worst moment of the job as it is configured."""
    return max(estimate_memory(each, config, ranks, stage.kind, parent=parent).total() for stage, each in stages)


def remedies(
    config: RunConfig, parent: Geometry, stages: Moments, ranks: int, limit_gib: float
) -> list[dict[str, Any]]:
    """Return the changes that make the job fit and that the run accepts.

    Each setting alone, what costs least first, and more ranks alone. If neither is enough, settings and ranks together,
    as few of both as it takes.
    """

    def peak_gib(changed: RunConfig, count: int) -> float:
        return peak_bytes(changed, parent, stages, count) / GIB

    def fits(changed: RunConfig, count: int) -> bool:
        return _takes(changed, count) and peak_gib(changed, count) <= limit_gib

    def are_enough(count: int, chosen: list[NamedChange]) -> bool:
        return fits(_with(config, chosen), count)

    changes = _changes(config.engine)
    found = [
        {"change": name, "peak_gib": round(peak_gib(changed, ranks), 2)}
        for name, change in changes
        if (changed := change(config)) != config and fits(changed, ranks)
    ]
    counts = [2**power for power in range(1, 11) if ranks < 2**power <= MOST_RANKS]
    enough = next((count for count in counts if fits(config, count)), None)
    if enough is not None:
        found.append({"change": f"{enough} ranks", "peak_gib": round(peak_gib(config, enough), 2)})
    if found:
        return found
    for count in [ranks, *counts]:
        needed = _needed(changes, partial(are_enough, count))
        if needed:
            names = [name for name, _ in needed] + ([f"{count} ranks"] if count > ranks else [])
            return [{"change": " ".join(names), "peak_gib": round(peak_gib(_with(config, needed), count), 2)}]
    return []


def _needed(changes: list[NamedChange], is_enough: Callable[[list[NamedChange]], bool]) -> list[NamedChange]:
    """Return the changes that are needed: from the dearest on, those that can be done without are dropped.

    Empty if all together are too little. Of two values of one setting the later one, which goes further, counts.
    """
    if not is_enough(changes):
        return []
    needed = list(changes)
    for each in reversed(changes):
        without = [other for other in needed if other is not each]
        if is_enough(without):
            needed = without
    return needed


def _with(config: RunConfig, changes: list[NamedChange]) -> RunConfig:
    for _, change in changes:
        config = change(config)
    return config


def _takes(config: RunConfig, ranks: int) -> bool:
    """Return whether the run would start with this configuration on so many ranks."""
    try:
        check_ranks(config, ranks)
    except ValueError:
        return False
    return True


Change = Callable[[RunConfig], RunConfig]
NamedChange = tuple[str, Change]


def _changes(engine: EngineConfig) -> list[NamedChange]:
    """Return the settings that take less memory, each as it is given and with its effect, the cheapest first."""
    half = max(1, engine.micro_batch_sequences // 2)
    return [
        ("engine.activation_checkpointing=true", _engine_with(activation_checkpointing=True)),
        ("engine.zero_stage=3", _engine_with(zero_stage=3)),
        *[(f"engine.live_elements={most}", partial(_with_few_live, most)) for most in (1_000_000_000, 0)],
        (f"engine.micro_batch_sequences={half}", _engine_with(micro_batch_sequences=half)),
        ("engine.micro_batch_sequences=1", _engine_with(micro_batch_sequences=1)),
        ("engine.dtype=bfloat16", _engine_with(dtype="bfloat16")),
        ("prune.method.gram_gib=1", _with_little_gram),
        ("recover.objective=cross_entropy", _without_teacher),
    ]


def _engine_with(**settings: Any) -> Change:
    return lambda config: replace(config, engine=replace(config.engine, **settings))


def _with_few_live(most: int, config: RunConfig) -> RunConfig:
    return replace(config, engine=replace(config.engine, live_elements=min(most, config.engine.live_elements)))


def _with_little_gram(config: RunConfig) -> RunConfig:
    method = replace(config.prune.method, gram_gib=min(1.0, config.prune.method.gram_gib or math.inf))
    return replace(config, prune=replace(config.prune, method=method))


def _without_teacher(config: RunConfig) -> RunConfig:
    return replace(config, recover=replace(config.recover, objective="cross_entropy"))
