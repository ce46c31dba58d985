"""The project, names and tags under which a run is found in W&B."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.config.outputs import TrackConfig
from transact.config.run import RunConfig
from transact.config.setting import check_values

DEFAULT_PROJECT = "transact"
VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
}


def fill_from_environment(track: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Fill null or empty values of the composed section `track` from `VARIABLES`, so that the run's record has them.

    Raises:
        ValueError: a variable holds a value that the setting does not accept.
    """
    for name, variable in VARIABLES.items():
        given = environ.get(variable, "").strip()
        if not given or track.get(name):
            continue
        value = [tag.strip() for tag in given.split(",") if tag.strip()] if name == "tags" else " ".join(given.split())
        check_values(TrackConfig, {name: value}, f"the environment's {variable}: track.")
        track[name] = value
    track.project = track.get("project") or DEFAULT_PROJECT


LONGEST = 64  # characters that W&B accepts
BETWEEN_SETTINGS = re.compile(r",(?=[~+\w./@-]+=)")  # a comma between two settings, not within a list


def run_tags(config: RunConfig) -> list[str]:
    """Return the user's tags, then what the run does, and for a point of a sweep the settings that are swept over."""
    tags = [*config.track.tags, config.mode]
    if config.model.path:
        tags.append(f"model={Path(config.model.path).name}")
    if config.mode == "prune" and config.prune.remove_fraction is not None:
        tags.append(f"remove_fraction={config.prune.remove_fraction:g}")
    if config.recover.variant is not None:
        tags.append(f"variant={config.recover.variant}")
    if config.share_dir is not None:
        tags += ["sweep", *(part for part in point_settings(Path(config.output_dir).name) if "=" in part)]
    return list(dict.fromkeys(tag[:LONGEST] for tag in tags))


def point_settings(folder: str) -> list[str]:
    """Split the name of a point's folder into the settings that are swept over."""
    return BETWEEN_SETTINGS.split(folder)
