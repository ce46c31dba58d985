"""From the definitions to W&B's own, and to its server. The only file that imports wandb_workspaces."""

from __future__ import annotations

import json
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from transact.tracking.dashboard.definitions import Curves, Definition, Points

COLUMNS = 2
HEIGHT = 8
WIDTH = 12  # of 24


def build(definition: Definition, entity: str, project: str) -> workspaces.Workspace:
    sections = [
        workspaces.Section(
            name=section.name,
            is_open=True,
            panels=[_panel(panel, place) for place, panel in enumerate(section.panels)],
        )
        for section in definition.sections
    ]
    return workspaces.Workspace(entity=entity, project=project, name=definition.name, sections=sections)


def specification(workspace: workspaces.Workspace) -> dict[str, Any]:
    """What W&B would be sent, with numbers in the place of random identifiers."""
    view = workspace._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"displayName": view.display_name, "spec": _without_identifiers(spec, [])}


def save(definition: Definition, entity: str, project: str) -> str:
    """Create the workspace, or overwrite the one that was made before. Returns its address.

    Raises:
        Exception: whatever wandb raises: no such project, no permission, no network.
    """
    workspace = build(definition, entity, project)
    workspace._internal_name = f"nw-{definition.view_id}-v"
    try:
        found = workspaces.Workspace.from_url(workspace.url)
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
    else:
        workspace._internal_id = found._internal_id
    return str(workspace.save().url)


def _panel(panel: Curves | Points, place: int) -> Any:
    layout = reports.Layout(x=place % COLUMNS * WIDTH, y=place // COLUMNS * HEIGHT, w=WIDTH, h=HEIGHT)
    if isinstance(panel, Curves):
        plot = reports.LinePlot(title=panel.title, x=panel.axis, y=list(panel.names), log_y=panel.is_logarithmic)
    else:
        x, y = (reports.SummaryMetric(name) for name in (panel.x, panel.y))
        plot = reports.ScatterPlot(title=panel.title, x=x, y=y)
    plot.layout = layout
    return plot


def _without_identifiers(value: Any, seen: list[str]) -> Any:
    """Identifiers by the order in which they come."""
    if isinstance(value, list):
        return [_without_identifiers(each, seen) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, each in value.items():
        if name in ("id", "__id__", "panelBankConfigId") and isinstance(each, str):
            if each not in seen:
                seen.append(each)
            kept[name] = f"#{seen.index(each)}"
        else:
            kept[name] = _without_identifiers(each, seen)
    return kept
