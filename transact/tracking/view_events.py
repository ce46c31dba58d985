"""A view at a distance: the process that started the ranks shows what rank 0 does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transact.tracking.view import Lines, Status, View

# Set for the ranks by a launcher that has a terminal: the file that it reads.
VARIABLE = "TRANSACT_VIEW_EVENTS"
STATUS_SECONDS = 0.25


def events_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    return Path(environ[VARIABLE]) if environ.get(VARIABLE) else None


class ViewEvents(Lines):
    """Lines for the log, and the same as JSON lines for the launcher. A file that cannot be written is let be."""

    def __init__(self, interval_seconds: float, path: Path, label: str = "") -> None:
        super().__init__(interval_seconds, label=label)
        self._path = path
        self._told_at = 0.0

    def plan(self, stages: Sequence[str]) -> None:
        super().plan(stages)
        self._tell("plan", stages=list(stages))

    def begin(self, stage: str, job_left: float | None = None) -> None:
        super().begin(stage, job_left)
        self._tell("begin", stage=stage, job_left=job_left)

    def finish(self, stage: str) -> None:
        self._tell("finish", stage=stage)

    def opened(self, status: Status) -> None:
        super().opened(status)
        self._tell("opened", status=asdict(status))

    def advanced(self, status: Status) -> None:
        super().advanced(status)
        if time.monotonic() - self._told_at >= STATUS_SECONDS:
            self._told_at = time.monotonic()
            self._tell("advanced", status=asdict(status))

    def closed(self, status: Status) -> None:
        super().closed(status)
        self._tell("closed", status=asdict(status))

    def _tell(self, event: str, **contents: Any) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **contents}) + "\n")
        except OSError:
            pass


def replay(view: View, line: str) -> None:
    """Show what one line of the file tells; a line that is not whole tells nothing."""
    try:
        contents = json.loads(line)
    except ValueError:
        return
    event = contents.pop("event")
    if "status" in contents:
        contents["status"] = Status(**contents["status"])
    getattr(view, event)(**contents)
