"""The page of a sweep: its points, and the quality of each against its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transact.config.inputs import of_what
from transact.runs.run_folder import point_folders
from transact.runs.verdict import LIVE
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
from transact.tracking.report.run_files import RunFiles, figure, read_run, values_in
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
        parent_parameters: of its own parent; None where it has none.
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
    parent_parameters: float | None
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
        parents: the dense models, measured in the points: several where models or texts are swept over.
        parent_names: their Hub ids or the names of their folders.
        command: that of the whole sweep.
    """

    name: str
    points: list[SweepPoint]
    parents: list[SweepPoint]
    parent_names: list[str]
    command: str
    has_tasks: bool

    @property
    def decode_settings(self) -> list[str]:
        """In which the points were measured."""
        return sorted({point.decode_setting for point in self.points if point.decode_setting})


def read_sweep(sweep: Path) -> SweepFiles:
    """Read the folders of a sweep; nothing that is in them makes this fail."""
    runs = [read_run(path) for path in point_folders(sweep)]
    points = [_point(run) for run in runs]
    commands = (run.config.get("sweep_command") for run in runs)
    return SweepFiles(
        name=sweep.absolute().name,
        points=points,
        parents=_parents(runs),
        parent_names=list(dict.fromkeys(run.parent_name for run in runs if run.parent_name)),
        command=str(next(filter(None, commands), "")),
        has_tasks=any(point.score is not None for point in points),
    )


def _parents(runs: Sequence[RunFiles]) -> list[SweepPoint]:
    """Return each parent once, as the point knows it that has measured the most of it."""
    found: dict[tuple[Any, ...], list[SweepPoint]] = {}
    for run in runs:
        if run.dense and not run.is_pretrained:
            parent = _parent(run)
            # As it is shown: other ranks or micro-batches sum in another order.
            alike = (run.parent_name, parent.parameters, number(parent.perplexity), parent.perplexity_of)
            found.setdefault(alike, []).append(parent)
    best = [max(each, key=_known) for each in found.values()]
    return best if len(best) > 1 else [replace(each, label="parent") for each in best]


def _known(point: SweepPoint) -> int:
    return sum(value is not None for value in (point.score, point.decode_seconds))


def _point(run: RunFiles) -> SweepPoint:
    found = models(run)
    last = found[-1][1] if len(found) > 1 or (found and run.is_pretrained) else {}
    is_over = run.state == "done"
    return SweepPoint(
        folder=run.path.name,
        label=label_of(run.path.name),
        state=run.state,
        stage="" if is_over else str(run.record.get("stage") or ""),
        error=str(run.record.get("error") or ""),
        has_page=(run.path / REPORT).is_file(),
        parameters=figure(last.get("parameters")),
        parent_parameters=None if run.is_pretrained else figure(run.dense.get("parameters")),
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
        label=f"parent of {run.path.name}",
        state="",
        stage="",
        error="",
        has_page=False,
        parameters=figure(run.dense.get("parameters")),
        parent_parameters=figure(run.dense.get("parameters")),
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
            *([f"Made from {', '.join(sweep.parent_names)}."] if sweep.parent_names else []),
            f"A sweep of {len(states)} points: " + ", ".join(f"{count} {state}" for state, count in counts.items()),
        ],
        tiles=_tiles(sweep),
        sections=sections,
        is_live=any(state in LIVE for state in states),
    )


def _heading(quality: str) -> str:
    return f"{QUALITIES[quality][0].capitalize()}, against what a model costs"


def _state(counts: dict[str, int]) -> str:
    if any(counts.get(state) for state in LIVE):
        return "running"
    for state in ("failed", "diverged", "stopped"):
        if counts.get(state):
            return state
    return "done" if counts else "empty"


def _tiles(sweep: SweepFiles) -> list[tuple[str, str, str]]:
    if len(sweep.parents) != 1:
        return []
    (parent,) = sweep.parents
    return [
        ("parent: parameters", short(parent.parameters), ""),
        ("parent: KV bytes per token", short(parent.kv_bytes), ""),
        (f"parent: perplexity{parent.perplexity_of}", number(parent.perplexity), "on held-out text"),
    ]


def _table(sweep: SweepFiles) -> Table:
    settings = sweep.decode_settings
    where = f" ({settings[0]})" if len(settings) == 1 else ""
    shown = [*sweep.parents, *sweep.points]
    changing = [name for name in DIMENSIONS if len({number(each.dimensions[name]) for each in shown} - {MISSING}) > 1]
    dimensions = [DIMENSIONS[name] for name in changing]
    headings = [
        "point",
        "state",
        *dimensions,
        "parameters",
        *(["of parent"] if sweep.parents else []),
        "KV bytes/token",
        "perplexity",
        f"decode, ms{where}",
    ]
    rows = []
    for point in shown:
        cells = [
            point.folder or point.label,
            _standing(point),
            *(number(point.dimensions[name]) for name in changing),
            short(point.parameters),
            *([share(point.parameters, point.parent_parameters)] if sweep.parents else []),
            number(None if point.kv_bytes is None else int(point.kv_bytes)),
            number(point.perplexity) + (point.perplexity_of if point.perplexity else ""),
            number(_milliseconds(point))
            + (f" ({point.decode_setting})" if len(settings) > 1 and point.decode_setting else ""),
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
    settings = sweep.decode_settings if cost == "latency" else ()
    for point in sweep.points:
        x, y = price(point), worth(point)
        if x is not None and y is not None:
            of = _of(point, quality, settings)
            groups.setdefault((point.label or "pruned") + of, []).append((x, y, point.folder + of))
    if not groups:
        return None
    traces = [_line(name, sorted(each), turn) for turn, (name, each) in enumerate(groups.items())]
    rows = [[folder, number(x), number(y)] for each in groups.values() for x, y, folder in sorted(each)]
    for parent in sweep.parents:
        x, y = price(parent), worth(parent)
        if x is not None and y is not None:
            name = parent.label + _of(parent, quality, settings)
            traces.append(_parent_point(name, x, y))
            rows.append([name, number(x), number(y)])
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


def _of(point: SweepPoint, quality: str, decode_settings: Sequence[str]) -> str:
    """Return what tells points apart that are not measured alike, which no line joins."""
    of = point.perplexity_of if quality == "perplexity" else ""
    return f"{of}, {point.decode_setting}" if len(decode_settings) > 1 else of


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
    return {"type": "scatter", "mode": "markers", "name": plain(name), "x": [x], "y": [y], "marker": marker}
