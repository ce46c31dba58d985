"""What every stage works with, and the one rule of a stage: finished output is never made again."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transact.config import RunConfig
from transact.geometry import Geometry
from transact.outline import Round, stage_names
from transact.runtime.process import ProcessGroup
from transact.runtime.run_folder import RunFolder
from transact.tracking.progress import Progress
from transact.tracking.time_left import JobClock
from transact.tracking.tracker import Tracker
from transact.tracking.view import Silent, View
from transact.workload import stage_flops

SHARED_FOLDER_SECONDS = 30.0  # NFS remembers for a while that a name did not exist


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A running job as one rank sees it."""

    config: RunConfig
    group: ProcessGroup
    folder: RunFolder
    tracker: Tracker
    view: View = field(default_factory=Silent)  # of rank 0; the others are silent
    clock: JobClock = field(default_factory=JobClock)  # heeded on rank 0 alone, which knows of earlier attempts

    def path(self, *parts: str) -> Path:
        return self.folder.path.joinpath(*parts)

    def say(self, message: str) -> None:
        self.view.say(message)

    def alert(self, kind: str, text: str, *, step: int, tokens: int, round: int) -> None:
        """What needs a person's eye goes to the console, to metrics.jsonl and to W&B, from rank 0."""
        self.say(f"alert: round {round}, step {step}: {kind}: {text}")
        self.tracker.alert(kind, text, step=step, tokens=tokens, round=round)

    def progress(
        self,
        description: str,
        total: int,
        unit: str = "tokens",
        completed: int = 0,
        share: tuple[float, float] = (0.0, 1.0),
        in_step: bool = True,
    ) -> Progress:
        """A bar for a loop.

        Args:
            total: units of all ranks together.
            share: of the stage's work, from where to where, where the stage has other loops too.
            in_step: False where the ranks do not call `advance` equally often: nothing collective may hang on it.
        """
        return Progress(
            self.view,
            description,
            total,
            unit,
            completed=completed,
            on_advance=self.group.watchdog.progress,
            share=share,
            job_left=self.clock.left,
        )

    def announce(self, rounds: list[Round], parent: Geometry) -> None:
        """Tell the view the stages of the run, and the clock their work; again when a split has changed the rounds."""
        self.view.plan(stage_names(self.config))
        self.clock.plan(stage_flops(self.config, parent, rounds))

    def check_seen(self, field: str, path: Path) -> None:
        """Collective. A file system that is shared may need a while to show what rank 0 has just made.

        Raises:
            ValueError: on every rank, when one does not see the folder.
        """

        def look() -> None:
            deadline = time.monotonic() + SHARED_FOLDER_SECONDS
            while not path.is_dir():
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{field}={str(path)!r} is not there on rank {self.group.rank} (host {socket.gethostname()}): "
                        "it must be a folder that all machines share"
                    )
                time.sleep(1)

        self.group.everywhere(look)

    def forget_metrics(self, position: int | None = None) -> None:
        """Drop what an unfinished attempt logged: all after `position` bytes, or after the last finished stage."""
        if self.group.is_main:
            self.tracker.truncate(self.folder.metrics_position() if position is None else position)

    def is_finished(self, name: str, settings: dict[str, Any] | None = None) -> bool:
        """Whether a stage is done with, with these settings; all ranks ask together."""
        return bool(self.group.broadcast(self.folder.is_finished(name, settings) if self.group.is_main else None))

    def stage(
        self,
        name: str,
        output: Path,
        work: Callable[[], dict[str, Any] | None],
        *,
        goes_on: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> Path:
        """Make `output` unless it is finished already. All ranks call this with the same arguments.

        Args:
            work: Makes the output on all ranks; may return the size and SHA-256 of files by name.
            goes_on: The work may go on from an earlier attempt, and then sees to that attempt's metrics itself.
            settings: Plain values that the output depends on and that may change in a finished run; where they have,
                the stage is done again, and so are those after it.

        Returns:
            `output`.

        Raises:
            Stopped: on every rank, when the job was asked to stop.
        """
        self.group.watchdog.stage = name
        self.group.stop_if_asked()
        if self.is_finished(name, settings):
            self.clock.finish(name, self.folder.stages[name]["seconds"] if self.group.is_main else 0.0)
            self.view.finish(name)
            self.say(f"{name}: already finished")
            return output
        if self.group.is_main:
            self.folder.begin(name, stage_names(self.config) if settings is not None else [])
            if not goes_on:
                self.forget_metrics()
            output.parent.mkdir(parents=True, exist_ok=True)
        self.clock.begin(name)
        self.view.begin(name, self.clock.left())
        begin = time.monotonic()
        digests = work()
        self.group.barrier()
        if self.group.is_main:
            seconds = time.monotonic() - begin
            self.folder.finish(name, output, seconds, self.tracker.position(), digests or {}, settings)
        self.group.barrier()
        self.clock.finish(name)
        self.view.finish(name)
        return output
