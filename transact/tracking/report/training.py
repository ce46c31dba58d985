"""Recovery over its tokens: loss, perplexity, learning rate; throughput, memory, and the seconds of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from transact.tracking.report.drawing import (
    COLOURS,
    Block,
    Chart,
    Figure,
    Named,
    Note,
    Section,
    Table,
    axis,
    bars,
    by_round,
    dots,
    duration,
    line,
    number,
    over_tokens,
    round_marks,
    short,
)
from transact.tracking.report.run_files import (
    Point,
    Row,
    RunFiles,
    Values,
    broken,
    even_sample,
    figure,
    names_below,
    series,
    values_in,
)

LOSS = "recover/loss"
VALIDATION_LOSS = "recover/validation_cross_entropy"
PERPLEXITY = "recover/perplexity"
VALIDATION_PERPLEXITY = "recover/validation_perplexity"
LEARNING_RATE = "recover/lr"
GRADIENT_NORM = "recover/grad_norm"
SLICED = "eval/perplexity_sliced"
RECOVERED = "eval/perplexity_recovered"
DENSE = "eval/perplexity_dense"

TABLE_ROWS = 40
Parts = dict[int, list[Point]]


def training_section(run: RunFiles) -> Section | None:
    marks = round_marks(run.rows, run.record.get("starts") or [])
    blocks: list[Block] = [*_warnings(run.rows)]
    blocks += [
        chart
        for chart in (
            _loss(run, marks),
            _perplexity(run, marks),
            *_steps(run.rows, marks),
            _mixture(run, marks),
            _weights(run, marks),
        )
        if chart
    ]
    return Section(name="recovery", title="Recovery", blocks=blocks) if blocks else None


def objective(run: RunFiles) -> str:
    return str(values_in(run.config, "recover").get("objective") or "cross_entropy")


def _warnings(rows: Sequence[Row]) -> list[Note]:
    count = broken(rows, LOSS, GRADIENT_NORM)
    text = f"{count} steps had a loss or gradient that is infinite or not a number: they are not drawn."
    return [Note(text=text, is_warning=True)] if count else []


def _loss(run: RunFiles, marks: Figure) -> Chart | None:
    parts = by_round(run.rows, LOSS)
    if not parts:
        return None
    named: dict[str, Parts] = {"training": parts}
    if objective(run) == "cross_entropy":
        named["validation"] = by_round(run.rows, VALIDATION_LOSS)
    words = {
        "distillation": "Loss: divergence from the parent",
        "mixed": "Loss: cross-entropy mixed with the divergence from the parent",
    }
    return line_chart("loss", words.get(objective(run), "Loss"), "nats per token", named, marks)


def _perplexity(run: RunFiles, marks: Figure) -> Chart | None:
    named = {"validation": by_round(run.rows, VALIDATION_PERPLEXITY)}
    if objective(run) == "cross_entropy":
        named = {"training": by_round(run.rows, PERPLEXITY), **named}
    chart = line_chart("perplexity", "Perplexity", "perplexity", named, marks, type="log")
    sliced, recovered, dense = (by_round(run.rows, metric) for metric in (SLICED, RECOVERED, DENSE))
    # They are measured with the recovered model, but are before its first token.
    starts = {turn: part[0][0] for turn, part in by_round(run.rows, VALIDATION_PERPLEXITY).items()}
    sliced = {turn: [(starts.get(turn, x), y) for x, y in part] for turn, part in sliced.items()}
    of_dense = "held-out" if run.is_pretrained else "held-out, parent"
    measured = {"held-out, sliced": sliced, "held-out, recovered": recovered, of_dense: dense}
    if chart is None or not any(measured.values()):
        return chart
    (figure,) = chart.views.values()
    symbols = ("triangle-up", "circle", "diamond")
    for (name, parts), symbol, colour in zip(measured.items(), symbols, COLOURS[2:], strict=False):
        points = [point for part in parts.values() for point in part]
        figure["data"] += [dots(name, points, colour, symbol)] if points else []
    return replace(chart, table=_table(named | measured))


def _steps(rows: Sequence[Row], marks: Figure) -> list[Chart]:
    charts = (
        ("learning-rate", "Learning rate", "learning rate", LEARNING_RATE),
        ("gradient-norm", "Gradient norm", "norm before clipping", GRADIENT_NORM),
    )
    found = (
        line_chart(name, title, y_title, {title: by_round(rows, metric)}, marks)
        for name, title, y_title, metric in charts
    )
    return [chart for chart in found if chart is not None]


def _mixture(run: RunFiles, marks: Figure) -> Chart | None:
    """Return how the shares that were seen of a mixture's texts came to their weights."""
    weights = {
        name: float(values_in(source).get("weight") or 0.0)
        for name, source in values_in(run.config, "data", "train", "sources").items()
    }
    named = {name: by_round(run.rows, f"data/share/{name}") for name in weights}
    chart = line_chart("mixture", "Texts of the mixture", "share of the tokens seen", named, marks)
    if chart is None:
        return None
    rows = [
        [
            name,
            f"{weight / sum(weights.values()):.2%}",
            *(f"{points[-1][1]:.2%}" for points in [series(run.rows, f"data/share/{name}")] if points),
            *(f"{points[-1][1]:.2f}" for points in [series(run.rows, f"data/passes/{name}")] if points),
        ]
        for name, weight in weights.items()
    ]
    return replace(chart, table=Table(headings=["text", "weight", "share seen", "times used"], rows=rows))


def _weights(run: RunFiles, marks: Figure) -> Chart | None:
    """Return how the weights of a mixture followed the losses of its texts."""
    sources = values_in(run.config, "data", "train", "sources")
    named = {name: by_round(run.rows, f"data/weight/{name}") for name in sources}
    return line_chart("weights", "Weights of the mixture, which follow the losses", "weight", named, marks)


def line_chart(
    name: str, title: str, y_title: str, named: Mapping[str, Parts], marks: Figure, **y_axis: Any
) -> Chart | None:
    """Return a chart of lines over tokens, one a name, with a part for each round; None without any point."""
    named = {label: parts for label, parts in named.items() if parts}
    if not named:
        return None
    traces = [line(label, parts, COLOURS[turn % len(COLOURS)]) for turn, (label, parts) in enumerate(named.items())]
    return Chart(
        name=name,
        title=title,
        summary=f"{title} over tokens. " + " ".join(_told(label, parts) for label, parts in named.items()),
        views={"": over_tokens(traces, y_title, marks, **y_axis)},
        table=_table(named),
    )


def _told(label: str, parts: Parts) -> str:
    points = [point for part in parts.values() for point in part]
    lowest = min(value for _, value in points)
    first, last = points[0][1], points[-1][1]
    return f"{label}: {number(first)} at first, {number(last)} at last, {number(lowest)} at the lowest."


def _table(named: Mapping[str, Parts]) -> Table:
    rows = [
        (turn, tokens, label, value)
        for label, parts in named.items()
        for turn, part in parts.items()
        for tokens, value in part
    ]
    shown = even_sample(sorted(rows), TABLE_ROWS)
    note = f"{len(shown)} of {len(rows)} points; all of them are in metrics.jsonl." if len(shown) < len(rows) else ""
    cells = [[f"round {turn}", short(tokens), label, number(value)] for turn, tokens, label, value in shown]
    return Table(headings=["round", "tokens", "series", "value"], rows=cells, note=note)


FIGURES = {
    "perf/tokens_per_s": "tokens/s",
    "perf/tokens_per_s_per_gpu": "tokens/s per rank",  # a rank has one GPU, if any
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
    table = _stages_table(run.rows)
    if table.rows:
        blocks.insert(0, Named(title="Steps of recovery", table=table))
    return Section(name="speed", title="Throughput, memory and time", blocks=blocks) if blocks else None


def _stages_table(rows: Sequence[Row]) -> Table:
    found = []
    for name, label in FIGURES.items():
        values = [value for row in rows if (value := figure(row.get(name))) is not None]
        if values:
            found.append([label, *(number(each) for each in (median(values), min(values), max(values), values[-1]))])
    return Table(headings=["", "median", "lowest", "highest", "latest"], rows=found)


def _memory(rows: Sequence[Row], marks: Figure) -> Chart | None:
    """Return a chart of everything below mem/ that is recorded in GiB."""
    named = {
        name.removeprefix("mem/").removesuffix("_gib").replace("_", " "): by_round(rows, name)
        for name in names_below(rows, "mem/")
        if name.endswith("_gib")  # others count something
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
    """Return the median tokens/s of the last 20 records; empty where there are none."""
    values = [value for row in rows if (value := figure(row.get("perf/tokens_per_s"))) is not None]
    return short(median(values[-20:])) if values else ""
