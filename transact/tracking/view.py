"""The views that show a run to a person: the interface, lines for a log file, and events for a launcher's terminal."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from transact.errors import printable
from transact.rounds import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The progress of a loop at one moment.

    Attributes:
        description: what is going on.
        unit: the plural name of what is counted.
        completed, total: units.
        per_second: units a second, of this attempt.
        figures: what else is shown, such as the loss.
        job_left: seconds to the end of the whole job; None where it is not known.
    """

    description: str
    unit: str
    completed: int
    total: int
    per_second: float
    figures: Mapping[str, float | str] = field(default_factory=dict)
    job_left: float | None = None

    @property
    def remaining(self) -> int:
        return max(0, self.total - self.completed)

    @property
    def percent(self) -> int:
        return 100 * self.completed // self.total if self.total else 100

    def left(self) -> str:
        """Return the time to the end at this pace, or "?" before there is one."""
        return duration(self.remaining / self.per_second) if self.per_second > 0 else "?"

    def line(self) -> str:
        """Return the status as one line of `key=value` pairs after the description."""
        parts = [f"{self.unit}={self.completed}/{self.total}", f"{self.percent}%"]
        parts += [f"{self.unit}_per_s={figure(self.per_second)}", f"left={self.left()}"]
        parts += [] if self.job_left is None else [f"job_left={duration(self.job_left)}"]
        parts += [f"{name}={figure(value)}" for name, value in self.figures.items()]
        return "  ".join([self.description, *parts])


class View(Protocol):
    """The interface through which rank 0 shows what it does. No method raises because of the screen."""

    def expect(self, stages: Sequence[Stage]) -> None:
        """Set the stages of the run in their order."""

    def begin(self, stage: Stage, job_left: float | None = None) -> None:
        """Show that a stage begins.

        Args:
            job_left: seconds to the end of the whole job; None where they are not known.
        """

    def finish(self, stage: Stage) -> None: ...

    def say(self, message: str) -> None:
        """Show one line that stays."""

    def opened(self, status: Status) -> None:
        """Show that a loop begins; `advanced` and `closed` belong to it until the next one."""

    def advanced(self, status: Status) -> None: ...
    def closed(self, status: Status) -> None: ...

    def close(self) -> None:
        """End the view and restore the terminal. A second call has no effect."""


class Silent:
    """The view of ranks other than 0."""

    def expect(self, stages: Sequence[Stage]) -> None: ...
    def begin(self, stage: Stage, job_left: float | None = None) -> None: ...
    def finish(self, stage: Stage) -> None: ...
    def say(self, message: str) -> None: ...
    def opened(self, status: Status) -> None: ...
    def advanced(self, status: Status) -> None: ...
    def closed(self, status: Status) -> None: ...
    def close(self) -> None: ...


class Lines(Silent):
    """The view for a log file, which wraps no line.

    It shows messages, a line where a stage begins, and for a loop one `key=value` line an interval and one at its end.

    Args:
        interval_seconds: the least time between two lines of a loop.
        stream: where lines of stages and loops go; standard error by default. Messages go to standard output.
        label: the prefix of every line: the point of a sweep.
    """

    def __init__(self, interval_seconds: float, stream: TextIO | None = None, label: str = "") -> None:
        self._interval_seconds = interval_seconds
        # Bound now: standard output is redirected while an engine is made, and another thread's messages would be lost.
        self._stream, self._messages = stream or sys.stderr, sys.stdout
        self._label = f"[{label}] " if label else ""
        self._stages: list[Stage] = []
        self._shown_at = time.monotonic()
        self._shown: int | None = None

    def expect(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)

    def begin(self, stage: Stage, job_left: float | None = None) -> None:
        number = [f"stage={self._stages.index(stage) + 1}/{len(self._stages)}"] if stage in self._stages else []
        left = [] if job_left is None else [f"job_left={duration(job_left)}"]
        self._print("  ".join([stage.name, *number, *left]))

    def say(self, message: str) -> None:
        self._write(message, self._messages)

    def opened(self, status: Status) -> None:
        self._shown_at, self._shown = time.monotonic(), None

    def advanced(self, status: Status) -> None:
        if time.monotonic() - self._shown_at >= self._interval_seconds:
            self._show(status)

    def closed(self, status: Status) -> None:
        if status.completed != self._shown:
            self._show(status)

    def _show(self, status: Status) -> None:
        self._shown_at, self._shown = time.monotonic(), status.completed
        self._print(status.line())

    def _print(self, line: str) -> None:
        self._write(line, self._stream)

    def _write(self, text: str, stream: TextIO) -> None:
        try:
            # In one piece: `print` would write the end of the line by itself, and a signal could speak before it.
            print(printable(f"{self._label}{text}") + "\n", end="", file=stream, flush=True)
        except OSError as error:
            # A terminal that is closed, or a `tee` that Ctrl-C has ended, must not end a run.
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 3725.4 -> "1:02:05"; 45 -> "0:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure(value: float | str) -> str:
    """Format a figure with about four digits, which are enough to watch: 3.1187 -> "3.119", 84123.4 -> "84123"."""
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


# Environment variable that a launcher with a terminal sets for its ranks: the file of events that it reads.
VARIABLE = "TRANSACT_VIEW_EVENTS"
STATUS_SECONDS = 0.25


def events_file() -> Path | None:
    """Return the file of events that a launcher reads, or None where no launcher asked for one."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


class ViewEvents(Lines):
    """Lines for the log, and the same as JSON lines for the launcher. A failure to write that file is ignored."""

    def __init__(self, interval_seconds: float, path: Path, label: str = "") -> None:
        super().__init__(interval_seconds, label=label)
        self._path = path
        self._told_at = 0.0

    def expect(self, stages: Sequence[Stage]) -> None:
        super().expect(stages)
        self._tell("expect", stages=[asdict(each) for each in stages])

    def begin(self, stage: Stage, job_left: float | None = None) -> None:
        super().begin(stage, job_left)
        self._tell("begin", stage=asdict(stage), job_left=job_left)

    def finish(self, stage: Stage) -> None:
        self._tell("finish", stage=asdict(stage))

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
    """Show on `view` the event in one line of the file; ignore an incomplete line."""
    try:
        contents = json.loads(line)
    except ValueError:
        return
    event = contents.pop("event")
    if "status" in contents:
        contents["status"] = Status(**contents["status"])
    if "stage" in contents:
        contents["stage"] = Stage(**contents["stage"])
    if "stages" in contents:
        contents["stages"] = [Stage(**each) for each in contents["stages"]]
    getattr(view, event)(**contents)
