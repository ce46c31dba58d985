"""Throughput, what the time of a step goes into, memory, and the seconds of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from transact.tracking.report.blocks import Block, Chart, Figure, Named, Section, Table
from transact.tracking.report.drawing import COLOURS, axis, bars, by_round, round_marks
from transact.tracking.report.metric_rows import Row, figure, names_below
from transact.tracking.report.run_files import RunFiles, Values, values_in
from transact.tracking.report.training import line_chart
from transact.tracking.report.words import duration, number, short

FIGURES = {
    "perf/tokens_per_s": "tokens/s",
    "perf/tokens_per_s_per_gpu": "tokens/s per rank",  # of which each has one GPU, if any
    "perf/mfu": "MFU",
    "perf/step_s": "step, seconds",
    "perf/data_s": "of it waiting for data, seconds",
    "perf/checkpoint_s": "a checkpoint, seconds",
}


def speed_section(run: RunFiles) -> Section | None:
    marks = round_marks(run.rows, run.record.get("starts") or [])
    charts = [
        line_chart(
            "throughput", "Throughput", "tokens/s", {"tokens/s": by_round(run.rows, "perf/tokens_per_s")}, marks
        ),
        line_chart("mfu", "Model FLOPs utilisation", "MFU", {"MFU": by_round(run.rows, "perf/mfu")}, marks),
        _memory(run.rows, marks),
        _stages(values_in(run.record, "stages")),
    ]
    blocks: list[Block] = [chart for chart in charts if chart is not None]
    table = _table(run.rows)
    if table.rows:
        blocks.insert(0, Named(title="Steps of recovery", table=table))
    return Section(name="speed", title="Throughput, memory and time", blocks=blocks) if blocks else None


def _table(rows: Sequence[Row]) -> Table:
    found = []
    for name, label in FIGURES.items():
        values = [value for row in rows if (value := figure(row.get(name))) is not None]
        if values:
            found.append([label, *(number(each) for each in (median(values), min(values), max(values), values[-1]))])
    return Table(headings=["", "median", "lowest", "highest", "latest"], rows=found)


def _memory(rows: Sequence[Row], marks: Figure) -> Chart | None:
    """Whatever is recorded below mem/, in GiB."""
    named = {
        name.removeprefix("mem/").removesuffix("_gib").replace("_", " "): by_round(rows, name)
        for name in names_below(rows, "mem/")
    }
    return line_chart("memory", "Memory, the most of all ranks", "GiB", named, marks, rangemode="tozero")


def _stages(stages: Values) -> Chart | None:
    seconds = {name: figure(entry.get("seconds")) for name, entry in stages.items() if isinstance(entry, dict)}
    known = {name: value for name, value in seconds.items() if value is not None}
    if not known:
        return None
    labels, values = list(known), list(known.values())
    trace = bars("seconds", labels, values, COLOURS[0])
    trace |= {"x": trace["y"], "y": trace["x"], "orientation": "h"}
    layout = {"xaxis": axis("seconds", type="linear"), "yaxis": axis("", autorange="reversed", automargin=True)}
    longest = max(known, key=lambda name: known[name])
    return Chart(
        name="stages",
        title="Time of every finished stage",
        summary=f"{duration(sum(values))} in {len(known)} finished stages. The longest is {longest}: "
        f"{duration(known[longest])}.",
        views={"": {"data": [trace], "layout": layout | {"showlegend": False}}},
        table=Table(headings=["stage", "time"], rows=[[name, duration(value)] for name, value in known.items()]),
        height=max(220, 90 + 20 * len(known)),
        is_wide=True,
    )


def latest_speed(rows: Sequence[Row]) -> str:
    values = [value for row in rows if (value := figure(row.get("perf/tokens_per_s"))) is not None]
    return short(median(values[-20:])) if values else ""
