"""The page of a sweep: its points, and the quality of each against its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transact.config.inputs import of_what
from transact.runs.run_folder import point_folders
from transact.tracking.report.drawing import (
    COLOURS,
    MISSING,
    MUTED,
    Block,
    Chart,
    Code,
    Figure,
    Named,
    Page,
    Section,
    Table,
    axis,
    number,
    plain,
    share,
    short,
)
from transact.tracking.report.results import decode_seconds, decode_setting, mean_score
from transact.tracking.report.rounds import DIMENSIONS, models
from transact.tracking.report.run_files import LIVE_STATES, RunFiles, figure, read_run, values_in
from transact.tracking.wandb_names import point_settings

REPORT = "report.html"
FRACTION = "prune.remove_fraction"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One model of the trade-off; a value is None where it is not known, or not yet.

    Attributes:
        folder: its name below the sweep's folder.
        label: the settings in which it differs, without the fraction to remove.
        has_page: whether its own report.html exists.
        perplexity_of: what is said behind its name, as " of documents apart".
        score: the mean over all tasks.
        decode_seconds: of one step, in `decode_setting`.
        dimensions: those that can be cut, by name.
    """

    folder: str
    label: str
    state: str
    stage: str
    error: str
    has_page: bool
    parameters: float | None
    kv_bytes: float | None
    perplexity: float | None
    perplexity_of: str
    score: float | None
    decode_seconds: float | None
    decode_setting: str | None
    dimensions: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFiles:
    """The points of a sweep and their parent.

    Attributes:
        parent: the dense model, measured in the points.
        parent_name: its Hub id or the name of its folder.
        command: that of the whole sweep.
    """

    name: str
    points: list[SweepPoint]
    parent: SweepPoint | None
    parent_name: str
    command: str
    has_tasks: bool


def read_sweep(sweep: Path) -> SweepFiles:
    """Read the folders of a sweep; nothing that is in them makes this fail."""
    runs = [read_run(path) for path in point_folders(sweep)]
    points = [_point(run) for run in runs]
    parents = [_parent(run) for run in runs if run.dense]
    commands = (run.config.get("sweep_command") for run in runs)
    return SweepFiles(
        name=sweep.absolute().name,
        points=points,
        parent=max(parents, key=_known) if parents else None,
        parent_name=next((run.parent_name for run in runs if run.parent_name), ""),
        command=str(next(filter(None, commands), "")),
        has_tasks=any(point.score is not None for point in points),
    )


def _known(point: SweepPoint) -> int:
    return sum(value is not None for value in (point.score, point.decode_seconds))


def _point(run: RunFiles) -> SweepPoint:
    found = models(run)
    last = found[-1][1] if len(found) > 1 else {}
    is_over = run.state == "done"
    return SweepPoint(
        folder=run.path.name,
        label=label_of(run.path.name),
        state=run.state,
        stage="" if is_over else str(run.record.get("stage") or ""),
        error=str(run.record.get("error") or ""),
        has_page=(run.path / REPORT).is_file(),
        parameters=figure(last.get("parameters")),
        kv_bytes=figure(last.get("kv_bytes_per_token")),
        # While a run goes on, this is the perplexity of a middle round, which would stand at the wrong place.
        perplexity=figure(last.get("perplexity")) if is_over else None,
        perplexity_of=of_what(run.dense),
        score=mean_score(run, "pruned"),
        decode_seconds=decode_seconds(run.efficiency),
        decode_setting=decode_setting(run.efficiency),
        dimensions={name: last.get(name) for name in DIMENSIONS},
    )


def _parent(run: RunFiles) -> SweepPoint:
    return SweepPoint(
        folder="",
        label="parent",
        state="",
        stage="",
        error="",
        has_page=False,
        parameters=figure(run.dense.get("parameters")),
        kv_bytes=figure(run.dense.get("kv_bytes_per_token")),
        perplexity=figure(run.dense.get("perplexity")),
        perplexity_of=of_what(run.dense),
        score=mean_score(run, "dense"),
        decode_seconds=decode_seconds(run.efficiency, "parent"),
        decode_setting=decode_setting(run.efficiency),
        dimensions={name: values_in(run.dense, "geometry").get(name) for name in DIMENSIONS},
    )


def label_of(folder: str) -> str:
    """Return all settings but the fraction to remove: they tell one line of the trade-off from another."""
    return ", ".join(each for each in point_settings(folder) if not each.startswith(f"{FRACTION}="))


Value = Callable[[SweepPoint], float | None]


def _milliseconds(point: SweepPoint) -> float | None:
    return None if point.decode_seconds is None else 1000 * point.decode_seconds


COSTS: dict[str, tuple[str, Value]] = {
    "parameters": ("parameters", lambda point: point.parameters),
    "kv": ("KV-cache bytes per token", lambda point: point.kv_bytes),
    "latency": ("milliseconds of a decoding step", _milliseconds),
}
QUALITIES: dict[str, tuple[str, Value]] = {
    "perplexity": ("perplexity", lambda point: point.perplexity),
    "tasks": ("mean score of the tasks", lambda point: point.score),
}


def sweep_page(sweep: SweepFiles) -> Page:
    states = [point.state for point in sweep.points]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    blocks: list[Block] = [Named(title="Points", table=_table(sweep))]
    sections = [Section(name="points", title="Points", blocks=blocks)]
    for quality in QUALITIES:
        charts = [chart for cost in COSTS if (chart := _trade_off(sweep, quality, cost)) is not None]
        if charts:
            sections.append(Section(name=f"{quality}-trade-off", title=_heading(quality), blocks=charts))
    if sweep.command:
        command = Code(title="The command, from the same checkout", text=sweep.command)
        sections.append(Section(name="command", title="How to get it again", blocks=[command]))
    return Page(
        title=sweep.name,
        state=_state(counts),
        lines=[
            *([f"Made from {sweep.parent_name}."] if sweep.parent_name else []),
            f"A sweep of {len(states)} points: " + ", ".join(f"{count} {state}" for state, count in counts.items()),
        ],
        tiles=_tiles(sweep),
        sections=sections,
        is_live=any(state in LIVE_STATES for state in states),
    )


def _heading(quality: str) -> str:
    return f"{QUALITIES[quality][0].capitalize()}, against what a model costs"


def _state(counts: dict[str, int]) -> str:
    for state in ("running", "submitted", "failed", "diverged", "stopped"):
        if counts.get(state):
            return "running" if state == "submitted" else state
    return "done" if counts else "empty"


def _tiles(sweep: SweepFiles) -> list[tuple[str, str, str]]:
    parent = sweep.parent
    if parent is None:
        return []
    return [
        ("parent: parameters", short(parent.parameters), ""),
        ("parent: KV bytes per token", short(parent.kv_bytes), ""),
        (f"parent: perplexity{parent.perplexity_of}", number(parent.perplexity), "on held-out text"),
    ]


def _table(sweep: SweepFiles) -> Table:
    parent = sweep.parent
    settings = {point.decode_setting for point in sweep.points if point.decode_setting}
    where = f" ({' / '.join(sorted(settings))})" if settings else ""
    shown = [parent, *sweep.points] if parent else sweep.points
    changing = [name for name in DIMENSIONS if len({number(each.dimensions[name]) for each in shown} - {MISSING}) > 1]
    dimensions = [DIMENSIONS[name] for name in changing]
    headings = [
        "point",
        "state",
        *dimensions,
        "parameters",
        "of parent",
        "KV bytes/token",
        "perplexity",
        f"decode, ms{where}",
    ]
    rows = []
    for point in shown:
        cells = [
            point.folder or "parent",
            _standing(point),
            *(number(point.dimensions[name]) for name in changing),
            short(point.parameters),
            share(point.parameters, parent.parameters if parent else None),
            number(None if point.kv_bytes is None else int(point.kv_bytes)),
            number(point.perplexity) + (point.perplexity_of if point.perplexity else ""),
            number(_milliseconds(point)),
        ]
        rows.append([*cells, number(point.score)] if sweep.has_tasks else cells)
    if sweep.has_tasks:
        headings.append("mean score of tasks")
    links = {point.folder: f"{quote(point.folder)}/{REPORT}" for point in sweep.points if point.has_page}
    return Table(headings=headings, rows=rows, links=links)


def _standing(point: SweepPoint) -> str:
    if point.error:
        return f"{point.state}: {point.error}"
    return f"{point.state}, {point.stage}" if point.stage else point.state or MISSING


def _trade_off(sweep: SweepFiles, quality: str, cost: str) -> Chart | None:
    """Return a chart with the parent and a line for each setting besides the fraction that is removed."""
    (y_title, worth), (x_title, price) = QUALITIES[quality], COSTS[cost]
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for point in sweep.points:
        x, y = price(point), worth(point)
        if x is not None and y is not None:
            of = _of(point, quality)
            groups.setdefault((point.label or "pruned") + of, []).append((x, y, point.folder + of))
    if not groups:
        return None
    traces = [_line(name, sorted(each), turn) for turn, (name, each) in enumerate(groups.items())]
    rows = [[folder, number(x), number(y)] for each in groups.values() for x, y, folder in sorted(each)]
    dense = (price(sweep.parent), worth(sweep.parent)) if sweep.parent else (None, None)
    if sweep.parent and dense[0] is not None and dense[1] is not None:
        name = f"parent{_of(sweep.parent, quality)}"
        traces.append(_parent_point(name, dense[0], dense[1]))
        rows.append([name, number(dense[0]), number(dense[1])])
    scale = {"type": "log"} if quality == "perplexity" else {}
    layout = {"xaxis": axis(x_title, rangemode="tozero"), "yaxis": axis(y_title, **scale)}
    told = "; ".join(f"{name}: {x} {x_title}, {y_title} {y}" for name, x, y in rows)
    return Chart(
        name=f"{quality}-{cost}",
        title=f"{y_title.capitalize()} and {x_title}",
        summary=f"{y_title} against {x_title}. {told}.",
        views={"": {"data": traces, "layout": layout}},
        table=Table(headings=["point", x_title, y_title], rows=rows),
        height=340,
    )


def _of(point: SweepPoint, quality: str) -> str:
    """Return what tells points apart that are not measured alike, which no line joins."""
    return point.perplexity_of if quality == "perplexity" else ""


def _line(name: str, points: list[tuple[float, float, str]], turn: int) -> Figure:
    colour = COLOURS[turn % len(COLOURS)]
    dash = ("solid", "dash", "dot", "dashdot")[turn // len(COLOURS) % 4]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(name),
        "x": [x for x, _, _ in points],
        "y": [y for _, y, _ in points],
        "text": [plain(folder) for _, _, folder in points],
        "hovertemplate": "%{text}<br>%{x:.4s}, %{y:.4g}<extra></extra>",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 9},
    }


def _parent_point(name: str, x: float, y: float) -> Figure:
    marker = {"color": MUTED, "size": 12, "symbol": "diamond"}
    return {"type": "scatter", "mode": "markers", "name": name, "x": [x], "y": [y], "marker": marker}
