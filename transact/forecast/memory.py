"""Memory of a rank at every moment that may be the worst, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transact.config import EngineConfig, RunConfig
from transact.geometry import Geometry
from transact.memory import FLOAT32_BYTES, GIB, estimate_memory, hidden_stream_bytes
from transact.outline import Round

MOST_RANKS = 1024


def memory_moments(config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int) -> list[dict[str, Any]]:
    """A row per moment: "stage", "bytes" by component, "total_bytes", and with what activation checkpointing."""
    first = rounds[0]
    rows = [_row("round_01/calibrate", config, parent, ranks, training=False, parent=parent)]
    for each in rounds:
        stage = f"{each.folder_name}/recover"
        rows.append(_row(stage, config, each.geometry, ranks, training=True, parent=parent))
    other = not config.engine.activation_checkpointing
    otherwise = replace(config, engine=replace(config.engine, activation_checkpointing=other))
    rows.append(_row(f"{first.folder_name}/recover", otherwise, first.geometry, ranks, training=True, parent=parent))
    return rows


def _row(
    stage: str, config: RunConfig, geometry: Geometry, ranks: int, *, training: bool, parent: Geometry
) -> dict[str, Any]:
    estimate = estimate_memory(geometry, config, ranks, training=training, parent=parent)
    return {
        "stage": stage,
        "activation_checkpointing": config.engine.activation_checkpointing if training else None,
        "bytes": {name: round(size) for name, size in estimate.parts().items() if size},
        "total_bytes": round(estimate.total()),
    }


def host_bytes(config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int) -> dict[str, int]:
    """Of a rank, in the machine's memory besides: the best weights seen in a recovery while better ones replace them,
    and the hidden states of sequential calibration."""
    found = {"best_weights": 2 * round(rounds[0].geometry.parameters() * FLOAT32_BYTES / ranks)}
    if config.prune.method.refit == "sequential":
        found["hidden_states"] = round(hidden_stream_bytes(parent, config, ranks))
    return found


def peak_bytes(config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int) -> float:
    """The worst moment of the job as it is configured."""
    moments = [estimate_memory(parent, config, ranks, training=False, parent=parent)]
    moments += [estimate_memory(each.geometry, config, ranks, training=True, parent=parent) for each in rounds]
    return max(moment.total() for moment in moments)


def remedies(
    config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int, limit_gib: float
) -> list[dict[str, Any]]:
    """Changes that make the job fit, each alone, what costs least first; if none does, all that cost no machines at
    once, and with them the ranks that are needed."""
    changes = _changes(config.engine)
    alone = {name: changed for name, change in changes if (changed := change(config)) != config}
    peaks = {name: peak_bytes(changed, parent, rounds, ranks) / GIB for name, changed in alone.items()}
    found = [{"change": name, "peak_gib": round(peak, 2)} for name, peak in peaks.items() if peak <= limit_gib]
    if found:
        return found
    together, names = config, list[str]()
    for name, change in changes:
        if change(together) != together:
            together = change(together)
            names.append(name)
    for count in [ranks, *(2**power for power in range(1, 11) if ranks < 2**power <= MOST_RANKS)]:
        peak = peak_bytes(together, parent, rounds, count) / GIB
        if peak <= limit_gib:
            more = [f"{count} ranks"] if count > ranks else []
            return [{"change": " ".join([*names, *more]), "peak_gib": round(peak, 2)}]
    return []


Change = Callable[[RunConfig], RunConfig]


def _changes(engine: EngineConfig) -> list[tuple[str, Change]]:
    """What takes less memory, from what costs little to what costs more: the setting as it is given, and its effect."""
    half = max(1, engine.micro_batch_sequences // 2)
    return [
        ("engine.activation_checkpointing=true", _engine_with(activation_checkpointing=True)),
        ("engine.zero_stage=3", _engine_with(zero_stage=3)),
        (f"engine.micro_batch_sequences={half}", _engine_with(micro_batch_sequences=half)),
        ("engine.micro_batch_sequences=1", _engine_with(micro_batch_sequences=1)),
        ("engine.dtype=bfloat16", _engine_with(dtype="bfloat16")),
        ("prune.method.gram_gib=1", _with_little_gram),
        ("recover.objective=cross_entropy", _without_teacher),
    ]


def _engine_with(**settings: Any) -> Change:
    return lambda config: replace(config, engine=replace(config.engine, **settings))


def _with_little_gram(config: RunConfig) -> RunConfig:
    method = replace(config.prune.method, gram_gib=min(1.0, config.prune.method.gram_gib))
    return replace(config, prune=replace(config.prune, method=method))


def _without_teacher(config: RunConfig) -> RunConfig:
    return replace(config, recover=replace(config.recover, objective="cross_entropy"))
