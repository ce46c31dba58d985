"""The view of a terminal: the stages of the run, the loop that is going on, time left; messages scroll above it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from transact.errors import one_line, printable
from transact.rounds import Stage
from transact.tracking.view import Lines, Status, View, duration, figure

if TYPE_CHECKING:
    from rich.console import RenderableType

FRAMES_PER_SECOND = 4
WIDEST_BAR = 60  # characters
MARKS = {"done": "✓", "running": "▸", "to come": "·"}
PLAIN_MARKS = {"done": "x", "running": ">", "to come": "."}


def open_view(interval_seconds: float, title: str, stream: TextIO | None = None, label: str = "") -> View:
    """Open a live view where the stream (standard error by default) is a terminal that can show one, else lines.

    Args:
        label: the prefix of every line: the point of a sweep.
    """
    stream = stream or sys.stderr
    if is_terminal(stream):
        try:
            return LiveView(title, stream, Lines(interval_seconds, stream, label), label)
        except Exception:  # a screen that fails must not end a run
            logging.getLogger(__name__).warning("no live view on this terminal; lines instead", exc_info=True)
    return Lines(interval_seconds, stream, label)


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal whose type, in TERM, is known and not dumb."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class LiveView:
    """The view on a terminal, drawn four times a second by its own thread. After a screen error, lines take over.

    Args:
        title: the run's name.
        stream: a terminal.
        lines: the view that takes over when the screen fails.
        label: the prefix of every message: the point of a sweep.
    """

    def __init__(self, title: str, stream: TextIO, lines: View, label: str = "") -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._lines = f"{title} {label}".strip(), lines
        self._label = f"[{label}] " if label else ""
        self._began = time.monotonic()
        self._stages: list[Stage] = []
        self._done: set[Stage] = set()
        self._running: Stage | None = None
        self._running_since = self._began
        self._ends_at: float | None = None  # of the whole job, on the monotonic clock
        self._status: Status | None = None
        self._is_open = True
        self._closing = threading.Lock()
        self._console = Console(file=stream, force_terminal=True)
        self._live = Live(
            get_renderable=self._drawn,
            console=self._console,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
            # Standard output that goes to a file must not end up on the screen.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        _log_to(sys.stderr)

    def expect(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self._lines.expect(stages)

    def begin(self, stage: Stage, job_left: float | None = None) -> None:
        self._running, self._running_since, self._status = stage, time.monotonic(), None
        self._foresee(job_left)
        if not self._is_open:
            self._lines.begin(stage, job_left)

    def finish(self, stage: Stage) -> None:
        self._done.add(stage)
        self._running = self._status = None

    def say(self, message: str) -> None:
        if self._is_open:
            try:
                self._console.print(
                    printable(f"{self._label}{message}"), markup=False, highlight=False, soft_wrap=True
                )  # without wrapping, so that paths stay whole
                return
            except Exception:  # noqa: BLE001 - a screen that fails must not end a run
                self.close()
        self._lines.say(message)

    def opened(self, status: Status) -> None:
        self._show(status, self._lines.opened)

    def advanced(self, status: Status) -> None:
        self._show(status, self._lines.advanced)

    def closed(self, status: Status) -> None:
        self._show(None if self._is_open else status, self._lines.closed)

    def close(self) -> None:
        with self._closing:
            if not self._is_open:
                return
            self._is_open = False
            with suppress(Exception):  # a screen that fails must not end a run
                self._live.stop()
            _log_to(sys.stderr)

    def _foresee(self, job_left: float | None) -> None:
        if job_left is not None:
            self._ends_at = time.monotonic() + job_left

    def _show(self, status: Status | None, otherwise: Callable[[Status], None]) -> None:
        self._status = status
        self._foresee(None if status is None else status.job_left)
        if not self._is_open and status is not None:
            otherwise(status)

    def _drawn(self) -> RenderableType:
        try:
            return self._draw()
        except Exception as error:  # noqa: BLE001 - a screen that fails must not end a run
            return f"{self._title} (no picture: {one_line(error)})"

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        left = "" if self._ends_at is None else f"  about {duration(max(0.0, self._ends_at - now))} left in all"
        parts: list[Any] = [Text(f"{self._title}  {duration(now - self._began)}{left}", style="bold")]
        parts += [self._group(name, stages) for name, stages in _grouped(self._stages)]
        parts += self._loop()
        return Group(*parts)

    def _group(self, name: str, stages: list[Stage]) -> Any:
        """Return one line: a round and its stages."""
        from rich.text import Text

        marks = MARKS if (self._console.encoding or "").startswith("utf") else PLAIN_MARKS
        line = Text(f"{name:9}" if name else "")
        for stage in stages:
            state = "done" if stage in self._done else "running" if stage == self._running else "to come"
            style = {"done": "green", "running": "bold", "to come": "dim"}[state]
            line.append(f"{marks[state]} {stage.kind}  ", style=style)
        return line

    def _loop(self) -> list[Any]:
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        status = self._status
        if status is None:
            if self._running is None:
                return []
            return [Text(f"{self._running.name}  {duration(time.monotonic() - self._running_since)}")]
        pace = f"{figure(status.per_second)} {status.unit}/s  {status.left()} left"
        figures = "  ".join(f"{name} {figure(value)}" for name, value in status.figures.items())
        width = min(WIDEST_BAR, self._console.width)
        return [
            Text(f"{status.description}  {status.completed:,}/{status.total:,} {status.unit}  {status.percent}%"),
            Padding(ProgressBar(total=max(1, status.total), completed=status.completed, width=width)),
            Text(pace),
            *([Text(figures)] if figures else []),
        ]


def _grouped(stages: Sequence[Stage]) -> list[tuple[str, list[Stage]]]:
    """Group the stages by round; those of no round come last, under an empty name."""
    groups: dict[int | None, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(stage.round, []).append(stage)
    rest = groups.pop(None, [])
    named = [(f"round {number:02d}", members) for number, members in groups.items() if number is not None]
    return [*named, ("", rest)] if rest else named


def _log_to(stream: TextIO) -> None:
    """Send log messages to `stream`: rich replaces standard error, and a handler made before holds the old stream."""
    for handler in logging.getLogger("transact").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)
