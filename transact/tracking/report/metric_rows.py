"""metrics.jsonl as the report reads it: while it is written, after restarts, whatever is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Point = tuple[float, float]

NON_FINITE = ("nan", "inf", "-inf")
LONGEST_SERIES = 1200  # points that a chart draws; a screen has no more


def read_rows(path: Path) -> list[Row]:
    """Every line that is a JSON object, oldest first. A missing file has none; what is torn or alien is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def figure(value: Any) -> float | None:
    """A finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def series(rows: Iterable[Row], name: str, *, axis: str = "tokens") -> list[Point]:
    """(axis, value) of a metric, in order of the axis. Of rows with the same axis value, which a repeated step leaves,
    the last counts."""
    found: dict[float, float] = {}
    for row in rows:
        place, value = figure(row.get(axis)), figure(row.get(name))
        if place is not None and value is not None:
            found[place] = value
    return sorted(found.items())


def names_below(rows: Iterable[Row], prefix: str) -> list[str]:
    """The metrics of a group, as "mem/" or "calibrate/", in the order in which they came."""
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))


def broken(rows: Iterable[Row], *names: str) -> int:
    """How many rows have one of these metrics, and it is infinite or not a number."""
    return sum(any(row.get(name) in NON_FINITE for name in names) for row in rows)


def thinned(points: Sequence[Point], longest: int = LONGEST_SERIES) -> list[Point]:
    """At most about `longest` points: of every stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= longest:
        return list(points)
    size = math.ceil(2 * len(points) / longest)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        stretch = [(value, place) for place, value in points[start : start + size]]
        ends = sorted({min(stretch), max(stretch)}, key=itemgetter(1))
        kept += [(place, value) for value, place in ends]
    kept.append(points[-1])
    return list(dict.fromkeys(kept))


def even_sample(points: Sequence[Any], longest: int) -> list[Any]:
    """At most `longest` of them, evenly spread, the first and the last among them."""
    if len(points) <= longest:
        return list(points)
    return [points[round(turn * (len(points) - 1) / (longest - 1))] for turn in range(longest)]


def tokens_at(rows: Iterable[Row], time: float) -> float:
    """The tokens that had been trained on at a moment (unix seconds), by what is left in the log."""
    before = (row for row in rows if (figure(row.get("time")) or math.inf) <= time)
    return max((figure(row.get("tokens")) or 0.0 for row in before), default=0.0)
