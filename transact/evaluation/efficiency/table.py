"""What was measured, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 1024**2
GIGA = 1e9
CLOCKS = {"processor": "processor time of one thread", "wall": "wall time"}


def efficiency_table(result: Mapping[str, Any]) -> str:
    """result: what `measure` returns."""
    settings = result["settings"]
    clock = settings["clock"]
    title = (
        f"{settings['dtype']} on {settings['device']}, {CLOCKS[clock]}, medians of {turns_text(result['latency'])}; "
        "decode: one step"
    )
    latency = result["latency"]
    counts = _counts(result["models"], settings["dtype"])
    parts = [_aligned(counts), _aligned(_work(latency)), title, _aligned(_latencies(latency, clock))]
    if any("speed_ups" in row for row in result["latency"]):
        parts.append(
            "allowed: what the removed FLOPs (prefill) and bytes (decode) allow. reached: the share of it; in brackets "
            "the share\nof what is possible when the floor stays, which is the time of the model with next to nothing "
            "left inside attention\nand MLP."
        )
    return "\n\n".join(parts)


def turns_text(latency: Sequence[Mapping[str, Any]]) -> str:
    """latency: rows of `measure`, of which some may have had time for fewer turns than others."""
    fewest, most = (pick((row["turns"] for row in latency), default=0) for pick in (min, max))
    return f"{most} turns" if fewest == most else f"{fewest} to {most} turns"


def _work(latency: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What dimensions alone say: FLOPs, and the weights and the cache that a decoding step reads."""
    rows = [["batch", "tokens", "", "prefill GFLOPs", "decode GFLOPs", "decode MiB read"]]
    for row in latency:
        for role, model in row["models"].items():
            prefill, decode = model["prefill"], model["decode"]
            giga = [f"{each['flops'] / GIGA:,.3f}" for each in (prefill, decode)]
            rows.append([*_setting(row), role, *giga, f"{decode['bytes'] / MIB:,.1f}"])
    return rows


def _setting(row: Mapping[str, Any]) -> list[str]:
    return [str(row["batch_size"]), f"{row['prompt_tokens']}+{row['new_tokens']}"]


def _counts(models: Mapping[str, Any], dtype: str) -> list[list[str]]:
    rows = [["", "parameters", "weight files", f"KV bytes/token in {dtype}"]]
    for role, model in models.items():
        file_size = f"{model['file_bytes'] / MIB:,.1f} MiB"
        rows.append([role, f"{model['parameters']:,}", file_size, f"{model['kv_bytes_per_token']:,}"])
    return rows


def _latencies(latency: Sequence[Mapping[str, Any]], clock: str) -> list[list[str]]:
    rows = [["batch", "tokens", "", "prefill ms", "decode ms", "whole s", "peak MiB", *_SPEED_UP_COLUMNS]]
    for row in latency:
        for role, model in row["models"].items():
            rows.append(
                [
                    *_setting(row),
                    role,
                    *(f"{1000 * model[phase][f'{clock}_seconds']:.2f}" for phase in ("prefill", "decode")),
                    f"{model['whole'][f'{clock}_seconds']:.3f}",
                    f"{model['peak_bytes'] / MIB:,.1f}",
                    *_speed_up_cells(row.get("speed_ups", {}).get(role)),
                ]
            )
    return rows


_SPEED_UP_COLUMNS = ["prefill", "allowed", "reached", "decode", "allowed", "reached", "whole"]


def _speed_up_cells(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return [""] * len(_SPEED_UP_COLUMNS)
    cells = []
    for phase in ("prefill", "decode"):
        each = entry[phase]
        beyond = each["reached_of_possible"]
        bracket = "" if beyond is None else f" ({beyond:.2f})"
        cells += [f"{each['speed_up']:.2f}x", f"{each['allowed']:.2f}x", f"{each['reached']:.2f}{bracket}"]
    return [*cells, f"{entry['whole']['speed_up']:.2f}x"]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text columns to the left, numbers to the right; empty columns at the end are left out."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    has_content = [any(cell for cell in column) for column in zip(*rows[1:], strict=True)]
    last = max(index for index, each in enumerate(has_content) if each) + 1
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:last], widths[:last], strict=True)) for row in rows
    )
