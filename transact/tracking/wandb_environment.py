"""W&B's own variables, which count where the configuration says nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transact.config import TrackConfig
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
    """Set what is null or empty in the composed section `track`, so that the run's own record holds it too.

    Raises:
        ValueError: a variable holds what the setting does not take.
    """
    for name, variable in VARIABLES.items():
        given = environ.get(variable, "").strip()
        if not given or track.get(name):
            continue
        value = [tag.strip() for tag in given.split(",") if tag.strip()] if name == "tags" else " ".join(given.split())
        check_values(TrackConfig, {name: value}, f"the environment's {variable}: track.")
        track[name] = value
    track.project = track.get("project") or DEFAULT_PROJECT
