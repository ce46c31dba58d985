"""Turns definitions into W&B workspaces and saves them on the server. The only file that imports wandb_workspaces."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from transact.tracking.dashboard.definitions import Curves, Definition, Points

COLUMNS = 2
HEIGHT = 8
WIDTH = 12  # of the 24 columns of W&B's grid


def create(definition: Definition, entity: str, project: str) -> str:
    """Make a new workspace and return its address.

    Raises:
        Exception: whatever wandb raises: no such project, no permission, no network.
    """
    made = workspaces.Workspace(entity=entity, project=project, name=definition.name, sections=_sections(definition))
    return str(made.save().url)


def overwrite(definition: Definition, address: str) -> str:
    """Replace the contents of the workspace at this address by the definition, and return the address.

    Raises:
        Exception: whatever wandb raises: no such workspace, no permission, no network.
    """
    found = workspaces.Workspace.from_url(address)
    found.name, found.sections = definition.name, _sections(definition)
    return str(found.save().url)


def _sections(definition: Definition) -> list[workspaces.Section]:
    return [
        workspaces.Section(
            name=section.name,
            is_open=True,
            panels=[_panel(panel, place) for place, panel in enumerate(section.panels)],
        )
        for section in definition.sections
    ]


def _panel(panel: Curves | Points, place: int) -> Any:
    layout = reports.Layout(x=place % COLUMNS * WIDTH, y=place // COLUMNS * HEIGHT, w=WIDTH, h=HEIGHT)
    if isinstance(panel, Curves):
        plot = reports.LinePlot(title=panel.title, x=panel.axis, y=list(panel.names), log_y=panel.is_logarithmic)
    else:
        x, y = (reports.SummaryMetric(name) for name in (panel.x, panel.y))
        plot = reports.ScatterPlot(title=panel.title, x=x, y=y)
    plot.layout = layout
    return plot
