"""Memory of a rank in every stage that may need the most, whether it fits, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from transact.config.machines import EngineConfig
from transact.config.run import RunConfig
from transact.engine.gram_memory import GIB
from transact.engine.memory import estimate_memory, memory_limit_gib
from transact.geometry import Geometry
from transact.rounds import Outline, Stage
from transact.stages.micro_batch import Moments, choose, peak_bytes, trained
from transact.stages.preflight import check_ranks, with_batch

MOST_RANKS = 1024


def settled(config: RunConfig, outline: Outline, ranks: int) -> tuple[RunConfig, str | None]:
    """Return the request with what a run would choose where it is left to it, and a line on that; None without one.

    Where no setting says how much memory there is, the least that can be asked for is estimated.
    """
    if config.engine.is_settled:
        return config, None
    limit = memory_limit_gib(config)
    chosen = choose(config, outline, ranks, 0.0 if limit is None else limit * GIB)
    unknown = "micro-batch: the run chooses it from the memory that is free then; below is the least"
    words = unknown if limit is None else chosen.words()
    return replace(config, engine=chosen.of(config.engine)), words


def memory_moments(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> list[dict[str, Any]]:
    """Return a row per moment: "stage", "activation_checkpointing", "bytes" by component, "total_bytes"."""
    return [_row(stage, config, geometry, ranks, parent) for stage, geometry in stages]


def other_checkpointing(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> dict[str, Any] | None:
    """Return the first recovery's row with activation checkpointing if the run has none, and without if it has."""
    other = not config.engine.recomputes
    otherwise = replace(config, engine=replace(config.engine, activation_checkpointing=other))
    for stage, geometry in trained(stages):
        return _row(stage, otherwise, geometry, ranks, parent)
    return None


def _row(stage: Stage, config: RunConfig, geometry: Geometry, ranks: int, parent: Geometry) -> dict[str, Any]:
    estimate = estimate_memory(geometry, config, ranks, stage.kind, parent=parent)
    return {
        "stage": stage.name,
        "activation_checkpointing": config.engine.activation_checkpointing if stage.kind == "recover" else None,
        "bytes": {name: round(size) for name, size in estimate.parts().items() if size},
        "total_bytes": round(estimate.total()),
    }


def remedies(
    config: RunConfig, parent: Geometry, stages: Moments, ranks: int, limit_gib: float
) -> list[dict[str, Any]]:
    """Return the changes that make the job fit and that the run accepts.

    Each setting alone, what costs least first, and more ranks alone. If neither is enough, settings and ranks together,
    as few of both as it takes.

    Args:
        config: with recover.batch_sequences as it was asked for: left to the tokens, it differs with the ranks.
    """

    def peak_gib(changed: RunConfig, count: int) -> float:
        """Return the peak of a run with this configuration on so many ranks; infinity where it would not start."""
        try:
            changed = with_batch(changed, count)
            check_ranks(changed, count)
        except ValueError:
            return math.inf
        return peak_bytes(changed, parent, stages, count) / GIB

    def fits(changed: RunConfig, count: int) -> bool:
        return peak_gib(changed, count) <= limit_gib

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


Change = Callable[[RunConfig], RunConfig]
NamedChange = tuple[str, Change]


def _changes(engine: EngineConfig) -> list[NamedChange]:
    """Return the settings that take less memory, each as it is given and with its effect, the cheapest first."""
    half = max(1, engine.micro_batch // 2)
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
