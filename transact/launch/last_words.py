"""What stands at the end of a failure: all that a person needs to act on it."""

from __future__ import annotations

import shlex
from pathlib import Path

from transact.config import RunConfig
from transact.errors import one_line


def last_words(message: str, config: RunConfig) -> str:
    """The reason in one line, then where to look, and the command that goes on.

    Args:
        message: the stage, the rank and the reason; line breaks become spaces.
    """
    return "\n".join([f"error: {one_line(message)}", *_places(Path(config.output_dir)), *how_to_go_on(config)])


def how_to_go_on(config: RunConfig) -> list[str]:
    """Nothing where the command is not known: the configuration did not come from a command line."""
    return [] if config.command is None else [f"  go on:   {config.command}"]


def _places(folder: Path) -> list[str]:
    """What the run has left that may explain more."""
    stacks, record = folder / "stacks", folder / "run.json"
    lines = [f"  record:  {shlex.quote(str(record))}"] if record.is_file() else []
    if stacks.is_dir() and any(stacks.iterdir()):
        lines.append(f"  stacks:  {shlex.quote(str(stacks))}")
    return lines
