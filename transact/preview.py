"""`mode=plan`: what a run would do and need, from dimensions alone; no weights are loaded."""

from __future__ import annotations

from transact.config import RunConfig
from transact.exit_codes import DONE, refuse
from transact.geometry import Geometry
from transact.memory import (
    MemoryEstimate,
    estimate_memory,
    gram_bytes,
    gram_passes,
    gram_peak_bytes,
    hidden_stream_bytes,
)
from transact.models.folder import declared_geometry
from transact.outline import Round, pruning_rounds, split_candidates, tokens_per_batch
from transact.runtime.rendezvous import environment_world_size

GIB = 1024**3


def print_preview(config: RunConfig) -> int:
    """Print the plan of a pruning run. Returns the exit code."""
    try:
        parent = declared_geometry(config.model)
        rounds = pruning_rounds(config, parent)
    except ValueError as error:
        return refuse(error)
    ranks = max(config.launch.num_ranks, environment_world_size())
    lines = [
        *_dimension_lines(config, parent, rounds),
        *_split_lines(config, parent),
        *_method_lines(config, parent, ranks),
        *_memory_lines(config, parent, rounds, ranks),
    ]
    print("\n".join(lines))
    return DONE


def _dimension_lines(config: RunConfig, parent: Geometry, rounds: list[Round]) -> list[str]:
    lines = [
        f"{config.name}: {config.model.path}, {_rounds(len(rounds))}",
        f"{'':9}{'head_dim':>9}{'intermediate':>14}{'parameters':>16}{'removed':>9}{'KV bytes/token':>16}"
        f"{'tokens':>16}{'steps':>9}{'peak rate':>11}",
        _row("dense", parent, parent),
    ]
    for each in rounds:
        steps = each.tokens // tokens_per_batch(config)
        recovery = f"{each.tokens:>16,}{steps:>9,}{each.learning_rate:>11.1e}"
        lines.append(_row(f"round {each.number}", each.geometry, parent) + recovery)
    total = sum(each.tokens for each in rounds)
    lines.append(f"recovery: {total:,} tokens in batches of {tokens_per_batch(config):,}")
    return lines


def _rounds(count: int) -> str:
    return f"{count} round" if count == 1 else f"{count} rounds"


def _split_lines(config: RunConfig, parent: Geometry) -> list[str]:
    """What the run will try before it knows the dimensions above."""
    if config.prune.split != "auto":
        return []
    candidates = split_candidates(config.prune, parent)
    names = ", ".join(f"{each.head_dim} / {each.intermediate_size:,}" for each in candidates)
    return [
        f"split: auto; the dimensions above are those of equal shares. The run cuts and measures {len(candidates)} "
        f"first (head_dim / intermediate): {names}"
    ]


def _method_lines(config: RunConfig, parent: Geometry, ranks: int) -> list[str]:
    """What calibration of the first, largest round takes."""
    method = config.prune.method
    sequences = config.prune.calibration_sequences
    lines = [f"calibration: 1 pass over {sequences} sequences for the scores"]
    if method.needs_gram():
        passes = gram_passes(parent, method.gram_gib)
        lines.append(
            f"gram matrices: {len(passes)} passes over {sequences} sequences, at most {max(map(len, passes))} of "
            f"{parent.num_layers} layers at a time: {gram_peak_bytes(parent, method) / GIB:.2f} GiB a rank; "
            f"{parent.num_layers * gram_bytes(parent) / 2 / GIB:.2f} GiB on the disk until the round is sliced"
        )
    if method.refit == "sequential":
        stream = hidden_stream_bytes(parent, config, ranks) / GIB
        lines.append(f"sequential calibration: three runs of every layer, {stream:.2f} GiB of hidden states a rank")
    return lines


def _row(name: str, geometry: Geometry, parent: Geometry) -> str:
    removed = 1 - geometry.parameters() / parent.parameters()
    return (
        f"{name:9}{geometry.head_dim:>9}{geometry.intermediate_size:>14,}{geometry.parameters():>16,}"
        f"{removed:>9.1%}{geometry.kv_bytes_per_token():>16,}"
    )


def _memory_lines(config: RunConfig, parent: Geometry, rounds: list[Round], ranks: int) -> list[str]:
    """Calibration of the dense parent and recovery after the first round are the largest moments."""
    moments = (("calibrate", parent, False), ("recover round 1", rounds[0].geometry, True))
    lines = [f"memory per rank on {ranks} rank(s), ZeRO stage {config.engine.zero_stage}, estimated:"]
    for name, geometry, training in moments:
        estimate = estimate_memory(geometry, config, ranks, training=training, parent=parent)
        lines.append(_memory_line(name, estimate))
    return lines


def _memory_line(name: str, estimate: MemoryEstimate) -> str:
    parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in estimate.parts().items() if size)
    return f"  {name:16} {estimate.total() / GIB:8.2f} GiB ({parts})"
