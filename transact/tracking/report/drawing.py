"""Pieces of figures: lines, bars, axes, marks of rounds and restarts. Plain dictionaries, as plotly.js takes them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from transact.tracking.report.blocks import Figure
from transact.tracking.report.metric_rows import LONGEST_SERIES, Point, Row, figure, series, thinned, tokens_at
from transact.tracking.report.words import significant

COLOURS = tuple(f"--series-{number}" for number in range(1, 7))
MUTED, WARNING = "--muted", "--warning"
FEW_ROUNDS = 4  # whose marks have room for a word
LONG_LINE = 60  # points beyond which each has no dot of its own


def plain(text: str) -> str:
    """A user's words in a chart: plotly.js reads tags and entities in them."""
    return html.escape(text, quote=False)


def by_round(rows: Sequence[Row], name: str) -> dict[int, list[Point]]:
    """The series of each round by itself: the first point of one may have the tokens of the last one before."""
    numbers = sorted({int(number) for row in rows if (number := figure(row.get("round"))) is not None})
    found = {number: series([row for row in rows if row.get("round") == number], name) for number in numbers}
    return {number: points for number, points in found.items() if points}


def line(name: str, parts: Mapping[int, Sequence[Point]] | Sequence[Point], colour: str, **more: Any) -> dict[str, Any]:
    """A trace; parts are not joined."""
    pieces = list(parts.values()) if isinstance(parts, Mapping) else [parts]
    whole = sum(len(piece) for piece in pieces)
    longest = max(16, LONGEST_SERIES // max(1, len(pieces)))
    x: list[float | None] = []
    y: list[float | None] = []
    for piece in pieces:
        if x:
            x.append(x[-1])
            y.append(None)
        for place, value in thinned(piece, longest):
            x.append(significant(place, 12))
            y.append(significant(value))
    return {
        "type": "scatter",
        "mode": "lines" if whole > LONG_LINE else "lines+markers",
        "name": plain(name),
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 6},
        **more,
    }


def dots(name: str, points: Sequence[Point], colour: str, symbol: str = "circle", **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": [place for place, _ in points],
        "y": [significant(value) for _, value in points],
        "marker": {"color": colour, "size": 10, "symbol": symbol},
        "cliponaxis": False,
        **more,
    }


def bars(name: str, labels: Sequence[str], values: Sequence[float | None], colour: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": plain(name),
        "x": [plain(label) for label in labels],
        "y": [None if value is None else significant(value) for value in values],
        "marker": {"color": colour},
        **more,
    }


def layer_axis(layers: int) -> dict[str, Any]:
    """Whole numbers only."""
    return axis("layer", dtick=max(1, round(layers / 8)), tick0=0)


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def over_tokens(data: list[dict[str, Any]], y_title: str, marks: Figure, **y_axis: Any) -> Figure:
    """marks: of `round_marks`."""
    layout = {"xaxis": axis("tokens of recovery", rangemode="tozero"), "yaxis": axis(y_title, **y_axis), **marks}
    return {"data": data, "layout": layout}


def round_marks(rows: Sequence[Row], starts: Sequence[Any]) -> Figure:
    """Parts of a layout: where rounds begin, and where the run was started again.

    starts: unix seconds of every start of the run, the first one included.
    """
    begun: dict[int, float] = {}
    for row in rows:
        number, tokens = figure(row.get("round")), figure(row.get("tokens"))
        if number is not None and tokens is not None and number > 0:
            begun.setdefault(int(number), tokens)
    word = "round " if len(begun) <= FEW_ROUNDS else ""
    marks = [_mark(tokens, f"{word}{number}", MUTED, "dash", "left") for number, tokens in begun.items()]
    restarts = [tokens_at(rows, start) for each in starts[1:] if (start := figure(each)) is not None]
    marks += [_mark(tokens, "restart" if word else "↻", WARNING, "dot", "right") for tokens in dict.fromkeys(restarts)]
    return {"shapes": [shape for shape, _ in marks], "annotations": [label for _, label in marks]}


def _mark(tokens: float, text: str, colour: str, dash: str, side: str) -> tuple[Figure, Figure]:
    shape = {"type": "line", "x0": tokens, "x1": tokens, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    label = {"x": tokens, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": side, "text": text}
    label |= {"yshift": 12} if side == "right" else {}  # restarts above rounds, whose words would be touched
    return (
        shape | {"line": {"color": colour, "width": 1, "dash": dash}},
        label | {"showarrow": False, "font": {"color": colour, "size": 11}},
    )
