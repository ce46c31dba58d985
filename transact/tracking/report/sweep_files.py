"""The points of a sweep: each is a run folder below the sweep's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transact.runs.run_folder import point_folders
from transact.tracking.report.efficiency import decode_seconds, decode_setting
from transact.tracking.report.evaluation import mean_score, sides
from transact.tracking.report.metric_rows import figure
from transact.tracking.report.rounds import DIMENSIONS, models
from transact.tracking.report.run_files import RunFiles, read_run, values_in
from transact.tracking.tags import point_settings

REPORT = "report.html"
FRACTION = "prune.remove_fraction"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One model of the trade-off. None where it is not known, or not yet.

    Attributes:
        folder: its name below the sweep's folder.
        label: the settings in which it differs, without the fraction to remove.
        has_page: its own report.html is there.
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
    score: float | None
    decode_seconds: float | None
    decode_setting: str | None
    dimensions: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFiles:
    """parent: the dense model, measured in the points; parent_name: what it is called. command: of the whole sweep."""

    name: str
    points: list[SweepPoint]
    parent: SweepPoint | None
    parent_name: str
    command: str
    has_tasks: bool


def read_sweep(sweep: Path) -> SweepFiles:
    """Never fails for what is in the folders."""
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
        # Of a run that goes on, a middle round's would stand at the wrong place.
        perplexity=figure(last.get("perplexity")) if is_over else None,
        score=mean_score(sides(run)[1]),
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
        score=mean_score(sides(run)[0]),
        decode_seconds=decode_seconds(run.efficiency, "parent"),
        decode_setting=decode_setting(run.efficiency),
        dimensions={name: values_in(run.dense, "geometry").get(name) for name in DIMENSIONS},
    )


def label_of(folder: str) -> str:
    """What tells one line of the trade-off from another: all settings but the fraction to remove."""
    return ", ".join(each for each in point_settings(folder) if not each.startswith(f"{FRACTION}="))
