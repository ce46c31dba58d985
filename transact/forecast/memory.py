"""Memory of a rank at every moment that may be the worst, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transact.config import EngineConfig, RunConfig
from transact.geometry import Geometry
from transact.memory import GIB, estimate_memory, hidden_stream_bytes
from transact.outline import Round

MOST_RANKS = 1024
FLOAT32_BYTES = 4


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
    found = []
    together, settings = config, list[str]()
    for setting, changed in _changes(config):
        peak = peak_bytes(changed, parent, rounds, ranks) / GIB
        if peak <= limit_gib:
            found.append({"change": setting, "peak_gib": round(peak, 2)})
    for setting, changed in _changes(config, cumulative=True):
        together, settings = changed, [*settings, setting]
    if found:
        return found
    for count in [ranks, *(2**power for power in range(1, 11) if ranks < 2**power <= MOST_RANKS)]:
        peak = peak_bytes(together, parent, rounds, count) / GIB
        if peak <= limit_gib:
            more = [f"{count} ranks"] if count > ranks else []
            return [{"change": " ".join([*dict.fromkeys(settings), *more]), "peak_gib": round(peak, 2)}]
    return []


def _with(engine: EngineConfig, name: str, value: Any) -> EngineConfig:
    return replace(engine, **{name: value})


def _changes(config: RunConfig, *, cumulative: bool = False) -> Iterator[tuple[str, RunConfig]]:
    """What takes less memory, from what costs little to what costs more. cumulative: each on top of those before."""
    current = config
    engine = config.engine
    for name, value in (
        ("activation_checkpointing", True),
        ("zero_stage", 3),
        ("micro_batch_sequences", max(1, engine.micro_batch_sequences // 2)),
        ("micro_batch_sequences", 1),
        ("dtype", "bfloat16"),
    ):
        base = current if cumulative else config
        if getattr(base.engine, name) == value:
            continue
        changed = replace(base, engine=_with(base.engine, name, value))
        current = changed
        yield f"engine.{name}={str(value).lower()}", changed
    base = current if cumulative else config
    if base.prune.method.gram_gib > 1:
        method = replace(base.prune.method, gram_gib=1.0)
        current = replace(base, prune=replace(base.prune, method=method))
        yield "prune.method.gram_gib=1", current
    base = current if cumulative else config
    if base.recover.objective != "cross_entropy":
        yield "recover.objective=cross_entropy", replace(base, recover=replace(base.recover, objective="cross_entropy"))
