"""The parts of a page: sections, tables and text, figures in words, and charts as plotly.js takes them."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transact.tracking.report.run_files import LONGEST_SERIES, Point, Row, figure, series, thinned, tokens_at

MISSING = "-"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BYTE_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def number(value: Any) -> str:
    """Format a whole number with all its digits, another one with at least four; return a text as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    found = figure(value)
    if found is None:
        return value if isinstance(value, str) else MISSING
    if found == 0 or 1e-3 <= abs(found) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(found)))) if found else 0
        return f"{found:,.{digits}f}"
    return f"{found:.3e}"


def short(value: Any) -> str:
    """Format a figure in thousands, millions and so on: 6.74B, 524k."""
    found = figure(value)
    if found is None:
        return MISSING
    rounded = float(f"{found:.3g}")  # 999.8 million are 1B, not 1e+03M
    for size, unit in UNITS:
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{found:.4g}"


def size(value: Any) -> str:
    """Format a number of bytes: 12.55 GiB."""
    found = figure(value)
    if found is None:
        return MISSING
    for unit, name in BYTE_UNITS:
        if abs(found) >= unit:
            return f"{found / unit:.4g} {name}"
    return f"{found:.0f} bytes"


def share(part: Any, whole: Any) -> str:
    """Format `part` as a percentage of `whole`."""
    above, below = figure(part), figure(whole)
    return MISSING if above is None or not below else f"{above / below:.1%}"


def duration(seconds: Any) -> str:
    """Format seconds in words: 5 s, 12 min, 3 h 05 min, 4 d 2 h."""
    found = figure(seconds)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.3g} s"
    minutes = round(found / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(seconds: float) -> str:
    """Format unix seconds as date and time in the time zone of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def significant(value: float, digits: int = 5) -> float:
    """Round to `digits` significant digits: a page has many figures and must stay small."""
    return float(f"{value:.{digits}g}")


Figure = dict[str, Any]  # "data" and "layout", as plotly.js takes them; a colour may be a variable of the page's style


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The contents of a table.

    Attributes:
        rows: of as many cells as there are headings; the first cell names the row.
        links: a row's name -> where it leads.
        note: what is left out, if anything.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with its figures as a table.

    Attributes:
        name: its anchor in the page: letters, digits and dashes.
        summary: what the chart shows, in words, for those who do not see it.
        views: label -> figure; where there are several, the reader chooses, and the last one is shown first.
        table: the figures behind it.
        height: of the drawing, in pixels.
        is_wide: takes the whole width of the page.
    """

    name: str
    title: str
    summary: str
    views: dict[str, Figure]
    table: Table
    height: int = 300
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A table that stands by itself."""

    title: str
    table: Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to read or copy as it is, hidden until the reader opens it if `is_folded`."""

    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A sentence, which says that something is wrong if `is_warning`."""

    text: str
    is_warning: bool = False


Block = Chart | Named | Code | Note


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A titled part of the page, with `name` as its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The contents of a whole page.

    Attributes:
        state: one word for what the run is doing: running, done, failed, ...
        lines: below the title.
        tiles: the figures to see first: what it is, value, and a remark.
        is_live: the page will be written again, so it offers to reload itself.
    """

    title: str
    state: str
    lines: Sequence[str]
    tiles: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]
    is_live: bool


COLOURS = tuple(f"--series-{number}" for number in range(1, 7))
MUTED, WARNING = "--muted", "--warning"
FEW_ROUNDS = 4  # up to which a mark has room for a word
LONG_LINE = 60  # points; a longer line is drawn without dots


def plain(text: str) -> str:
    """Escape a user's words for a chart: plotly.js would read tags and entities in them."""
    return html.escape(text, quote=False)


def by_round(rows: Sequence[Row], name: str) -> dict[int, list[Point]]:
    """Return a series for each round: its first point may have the same tokens as the last one of the round before."""
    parts: dict[int, list[Row]] = {}
    for row in rows:
        if name in row and (number := figure(row.get("round"))) is not None:
            parts.setdefault(int(number), []).append(row)
    found = {number: series(parts[number], name) for number in sorted(parts)}
    return {number: points for number, points in found.items() if points}


def line(name: str, parts: Mapping[int, Sequence[Point]] | Sequence[Point], colour: str, **more: Any) -> dict[str, Any]:
    """Return the trace of a line, with a gap between its parts."""
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
    """Return an axis over layers, with whole numbers only."""
    return axis("layer", dtick=max(1, round(layers / 8)), tick0=0)


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def over_tokens(data: list[dict[str, Any]], y_title: str, marks: Figure, **y_axis: Any) -> Figure:
    """Return a figure over the tokens of recovery, with marks from `round_marks`."""
    layout = {"xaxis": axis("tokens of recovery", rangemode="tozero"), "yaxis": axis(y_title, **y_axis), **marks}
    return {"data": data, "layout": layout}


def round_marks(rows: Sequence[Row], starts: Sequence[Any]) -> Figure:
    """Return the parts of a layout that mark where rounds begin and where the run was restarted.

    Args:
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
    label |= {"yshift": 12} if side == "right" else {}  # restarts stand above rounds, or their words would overlap
    return (
        shape | {"line": {"color": colour, "width": 1, "dash": dash}},
        label | {"showarrow": False, "font": {"color": colour, "size": 11}},
    )
