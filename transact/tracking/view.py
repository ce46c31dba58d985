"""What shows a run to a person: the interface, its form for a log file, and a view at a distance."""

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
    """How far a loop has come.

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
        """Time to the end at this pace; "?" before there is one."""
        return duration(self.remaining / self.per_second) if self.per_second > 0 else "?"

    def line(self) -> str:
        parts = [f"{self.unit}={self.completed}/{self.total}", f"{self.percent}%"]
        parts += [f"{self.unit}_per_s={figure(self.per_second)}", f"left={self.left()}"]
        parts += [] if self.job_left is None else [f"job_left={duration(self.job_left)}"]
        parts += [f"{name}={figure(value)}" for name, value in self.figures.items()]
        return "  ".join([self.description, *parts])


class View(Protocol):
    """Where rank 0 shows what it does. No method raises because of the screen."""

    def expect(self, stages: Sequence[Stage]) -> None:
        """The stages of the run in their order."""

    def begin(self, stage: Stage, job_left: float | None = None) -> None:
        """job_left: seconds to the end of the whole job, where they are known."""

    def finish(self, stage: Stage) -> None: ...

    def say(self, message: str) -> None:
        """One line that stays."""

    def opened(self, status: Status) -> None:
        """A loop begins; `advanced` and `closed` are told of it until the next."""

    def advanced(self, status: Status) -> None: ...
    def closed(self, status: Status) -> None: ...

    def close(self) -> None:
        """Nothing more comes; the terminal is as before. Twice does no harm."""


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
    """For a log file: messages, a line where a stage begins, and of a loop one `key=value` line an interval and one at
    its end. No line is wrapped.

    Args:
        interval_seconds: the least time between two lines of a loop.
        stream: where lines of stages and loops go; standard error by default. Messages go to standard output.
        label: what every line begins with: the point of a sweep.
    """

    def __init__(self, interval_seconds: float, stream: TextIO | None = None, label: str = "") -> None:
        self._interval_seconds = interval_seconds
        # Those of now: while an engine is made they are caught, and with them what another thread says.
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
            print(printable(f"{self._label}{text}"), file=stream, flush=True)
        except OSError as error:
            # A terminal that is closed, or a `tee` that Ctrl-C has ended, is no reason to end a run.
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise


def duration(seconds: float) -> str:
    """3725.4 -> "1:02:05"; 45 -> "0:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure(value: float | str) -> str:
    """Four digits are enough to watch: 3.1187 -> "3.119", 84123.4 -> "84123"."""
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


# Set for the ranks by a launcher that has a terminal: the file that it reads.
VARIABLE = "TRANSACT_VIEW_EVENTS"
STATUS_SECONDS = 0.25


def events_file() -> Path | None:
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


class ViewEvents(Lines):
    """Lines for the log, and the same as JSON lines for the launcher. A file that cannot be written is let be."""

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
    """Show what one line of the file tells; a line that is not whole tells nothing."""
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
