"""What every stage works with, and the one rule of a stage: finished output is never made again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transact.config import RunConfig
from transact.runtime.process import ProcessGroup
from transact.runtime.run_folder import RunFolder
from transact.tracking.console import Progress, say
from transact.tracking.tracker import Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A running job as one rank sees it."""

    config: RunConfig
    group: ProcessGroup
    folder: RunFolder
    tracker: Tracker

    def path(self, *parts: str) -> Path:
        return self.folder.path.joinpath(*parts)

    def say(self, message: str) -> None:
        if self.group.is_main:
            say(message)

    def say_error(self, message: str) -> None:
        if self.group.is_main:
            print(f"error: {message}", file=sys.stderr, flush=True)

    def progress(self, description: str, total: int, unit: str = "tokens") -> Progress:
        """Shown by rank 0 only."""
        return Progress(
            description,
            total,
            unit=unit,
            interval_seconds=self.config.track.progress_seconds,
            enabled=self.group.is_main,
        )

    def is_finished(self, name: str) -> bool:
        """Whether a stage is done with; all ranks ask together."""
        return bool(self.group.broadcast(self.folder.is_finished(name) if self.group.is_main else None))

    def stage(self, name: str, output: Path, work: Callable[[], dict[str, Any] | None]) -> Path:
        """Make `output` unless it is finished already. All ranks call this with the same arguments.

        Args:
            work: Makes the output on all ranks; may return the size and SHA-256 of files by name.

        Returns:
            `output`.
        """
        if self.is_finished(name):
            self.say(f"{name}: already finished")
            return output
        if self.group.is_main:
            self.folder.begin(name)
            output.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        digests = work()
        self.group.barrier()
        if self.group.is_main:
            seconds = time.monotonic() - begin
            self.folder.finish(name, output, seconds, self.tracker.position(), digests or {})
        self.group.barrier()
        return output
