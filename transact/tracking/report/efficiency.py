"""What the exported model costs to run, measured beside its parent."""

from __future__ import annotations

from typing import Any

from transact.tracking.report.blocks import Block, Chart, Named, Note, Section, Table
from transact.tracking.report.drawing import COLOURS, axis, bars
from transact.tracking.report.metric_rows import figure
from transact.tracking.report.run_files import RunFiles, Values, values_in
from transact.tracking.report.words import MISSING, number, size

PARENT, PRUNED = "parent", "pruned"
PHASES = ("prefill", "decode", "whole")
GIGA = 1e9


def efficiency_section(run: RunFiles) -> Section | None:
    found = run.efficiency
    if not found:
        return None
    blocks: list[Block] = []
    reason = found.get("not_measured")
    if reason:
        blocks.append(Note(text=f"Latency was not measured: {reason}."))
    rows = latency_rows(found)
    if rows:
        blocks.append(Note(text=_conditions(found, rows)))
        blocks.append(_speed_ups(rows))
    tables = {
        "Latency and memory": _latencies(rows, found),
        "Work": _work(rows),
        "Size": _sizes(values_in(found, "models"), values_in(found, "settings").get("dtype")),
    }
    blocks += [Named(title=title, table=table) for title, table in tables.items() if table.rows]
    return Section(name="efficiency", title="Efficiency", blocks=blocks) if blocks else None


def latency_rows(efficiency: Values) -> list[Values]:
    rows = efficiency.get("latency")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def decode_seconds(efficiency: Values, role: str = PRUNED) -> float | None:
    """Of one step, in the first setting: the one for which there was time if there was any."""
    rows = latency_rows(efficiency)
    return _seconds(rows[0], role, "decode", _clock(efficiency)) if rows else None


def decode_setting(efficiency: Values) -> str | None:
    """What `decode_seconds` was measured with."""
    rows = latency_rows(efficiency)
    return _setting(rows[0]) if rows else None


def _clock(efficiency: Values) -> str:
    return str(values_in(efficiency, "settings").get("clock") or "wall")


def _seconds(row: Values, role: str, phase: str, clock: str) -> float | None:
    return figure(values_in(row, "models", role, phase).get(f"{clock}_seconds"))


def _setting(row: Values) -> str:
    return f"{row.get('prompt_tokens')}+{row.get('new_tokens')} tokens, batch {row.get('batch_size')}"


def _conditions(efficiency: Values, rows: list[Values]) -> str:
    settings = values_in(efficiency, "settings")
    clocks = {"processor": "processor time of one thread", "wall": "wall time"}
    clock = clocks.get(str(settings.get("clock")), "")
    turns = sorted({count for row in rows if isinstance(count := row.get("turns"), int)})
    counted = " to ".join(str(each) for each in dict.fromkeys((turns[0], turns[-1]))) if turns else MISSING
    missing = efficiency.get("left_out")
    shorter = (
        f" Left out for want of time: {'; '.join(map(str, missing))}." if isinstance(missing, list) and missing else ""
    )
    where = f"{settings.get('dtype')} on {settings.get('device')}"
    return f"{where}, {clock}, medians of {counted} turns; decode: one step.{shorter}"


def _speed_ups(rows: list[Values]) -> Chart:
    """What was reached beside what the removed FLOPs and bytes allow, at best and with all that no cut removes."""
    labels = [f"{phase}, {_setting(row)}" if len(rows) > 1 else phase for row in rows for phase in PHASES]
    entries = [values_in(row, "speed_ups", PRUNED, phase) for row in rows for phase in PHASES]
    wanted = {"speed_up": "measured", "possible": "possible with what no cut removes", "allowed": "allowed by the cut"}
    values = {key: [figure(entry.get(key)) for entry in entries] for key in wanted}
    traces = [
        bars(label, labels, values[key], COLOURS[turn])
        for turn, (key, label) in enumerate(wanted.items())
        if any(value is not None for value in values[key])
    ]
    table = Table(
        headings=["", *wanted.values()],
        rows=[[label, *(_times(values[key][turn]) for key in wanted)] for turn, label in enumerate(labels)],
    )
    told = "; ".join(f"{label}: {_times(values['speed_up'][turn])}" for turn, label in enumerate(labels))
    layout = {"xaxis": axis("", type="category"), "yaxis": axis("times as fast as the parent", rangemode="tozero")}
    return Chart(
        name="speed-up",
        title="Speed-up over the parent",
        summary=f"How many times as fast as the parent. {told}.",
        views={"": {"data": traces, "layout": layout | {"barmode": "group"}}},
        table=table,
    )


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _latencies(rows: list[Values], efficiency: Values) -> Table:
    clock = _clock(efficiency)
    cells = []
    for row in rows:
        for role in (PARENT, PRUNED):
            prefill, decode, whole = (_seconds(row, role, phase, clock) for phase in PHASES)
            milliseconds = [number(None if each is None else 1000 * each) for each in (prefill, decode)]
            peak = values_in(row, "models", role).get("peak_bytes")
            cells.append([_setting(row), role, *milliseconds, number(whole), size(peak)])
    return Table(headings=["setting", "model", "prefill, ms", "decode, ms", "whole, s", "peak memory"], rows=cells)


def _work(rows: list[Values]) -> Table:
    """What dimensions alone say."""
    cells = []
    for row in rows:
        for role in (PARENT, PRUNED):
            prefill, decode = (values_in(row, "models", role, phase) for phase in ("prefill", "decode"))
            flops = [
                number(None if (each := figure(phase.get("flops"))) is None else each / GIGA)
                for phase in (prefill, decode)
            ]
            cells.append([_setting(row), role, *flops, size(decode.get("bytes"))])
    return Table(headings=["setting", "model", "prefill, GFLOPs", "decode, GFLOPs", "decode, bytes read"], rows=cells)


def _sizes(models: Values, dtype: Any) -> Table:
    def cells(role: str, model: dict[str, Any]) -> list[str]:
        return [
            role,
            number(model.get("parameters")),
            size(model.get("file_bytes")),
            number(model.get("kv_bytes_per_token")),
        ]

    rows = [cells(role, values_in(models, role)) for role in models]
    cache = f"KV bytes/token in {dtype}" if isinstance(dtype, str) else "KV bytes/token"
    return Table(headings=["model", "parameters", "weight files", cache], rows=rows)
