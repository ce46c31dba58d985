"""What a run is found by in the table of runs."""

from __future__ import annotations

import re
from pathlib import Path

from transact.config import RunConfig

LONGEST = 64  # characters that W&B takes
BETWEEN_SETTINGS = re.compile(r",(?=[~+\w./@-]+=)")  # a comma between two settings, not within a list


def run_tags(config: RunConfig) -> list[str]:
    """The user's own, then what the run does; of a point of a sweep also the settings that are swept over."""
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
    """What the name of a point's folder says: the settings that are swept over."""
    return BETWEEN_SETTINGS.split(folder)
