"""What a person sees while a run goes on: a bar on a terminal, a line a minute in a log file."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO


def say(message: str) -> None:
    """Prints one line to standard output at once, however it is redirected."""
    print(message, flush=True)


class Progress:
    """Shows how far a loop has come.

        with Progress("recover round 1/2", total=500_000) as progress:
            progress.advance(4096, loss=3.12)

    On a terminal this is a bar. Anywhere else, because a bar would fill a log file with control
    characters, it is one line at most every `interval_seconds`, and one at the end:

        recover round 1/2  tokens=120000/500000  24%  tokens_per_s=8400  left=0:45  loss=3.12

    Args:
        description: what is going on.
        total: units to do, `completed` included.
        unit: the plural name of what is counted.
        interval_seconds: the least time between two lines of a log file.
        enabled: False on ranks other than 0, where nothing is shown.
        stream: where to show it; standard error by default.
        completed: units an earlier attempt has done; they do not count towards the rate.
        on_advance: called with every advance, whether it is shown or not.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str = "tokens",
        interval_seconds: float = 60.0,
        enabled: bool = True,
        stream: TextIO | None = None,
        completed: int = 0,
        on_advance: Callable[[], None] | None = None,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._first = self._completed = completed
        self._figures: dict[str, float | str] = {}
        self._started = time.monotonic()
        self._stream = stream or sys.stderr
        self._interval_seconds = interval_seconds
        self._enabled = enabled
        self._on_advance = on_advance
        self._display: _Display | None = None

    def advance(self, amount: int, **figures: float | str) -> None:
        """Counts `amount` more units; each figure is shown until a newer one of its name."""
        self._completed += amount
        self._figures.update(figures)
        if self._on_advance is not None:
            self._on_advance()
        if self._display is not None:
            self._display.show(self._completed, self._status())

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._enabled and _is_terminal(self._stream):
            self._display = _Bar(self._description, self._total, self._stream)
            self._display.show(self._completed, self._status())
        elif self._enabled:
            self._display = _Lines(self._description, self._interval_seconds, self._stream)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.close(self._completed, self._status())
            self._display = None

    def _status(self) -> str:
        elapsed = time.monotonic() - self._started
        per_second = (self._completed - self._first) / elapsed if elapsed > 0 else 0.0
        remaining = max(0, self._total - self._completed)
        percent = 100 * self._completed // self._total if self._total else 100
        left = _duration(remaining / per_second) if per_second > 0 else "?"
        parts = [f"{self._unit}={self._completed}/{self._total}", f"{percent}%"]
        parts += [f"{self._unit}_per_s={_figure(per_second)}", f"left={left}"]
        parts += [f"{name}={_figure(value)}" for name, value in self._figures.items()]
        return "  ".join(parts)


def result_table(result: Mapping[str, Any], stream: TextIO | None = None, width: int = 100) -> None:
    """Prints the dense model and every round of a `result.json`, sliced and recovered.

    Args:
        result: the contents of `result.json`; ARCHITECTURE.md describes it.
        stream: standard output by default.
        width: characters a line may have; a longer one is cut, for a wrapped table is unreadable.
    """
    asked, reached = (result["remove_fraction"][key] for key in ("asked", "reached"))
    wish = "" if asked is None else f", {asked:.1%} asked"
    title = f"{result['name']}: {reached:.1%} of the parameters removed{wish}"
    rows = [("", "parameters", "of dense", "KV bytes/token", "perplexity"), *_rows(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    text = "\n".join(line[:width] for line in [title, rule, lines[0], rule, *lines[1:], rule])
    print(text, file=stream or sys.stdout, flush=True)


class _Display(Protocol):
    def show(self, completed: int, status: str) -> None: ...
    def close(self, completed: int, status: str) -> None: ...


class _Lines:
    """One `key=value` line an interval."""

    def __init__(self, description: str, interval_seconds: float, stream: TextIO) -> None:
        self._description, self._interval_seconds = description, interval_seconds
        self._stream = stream
        self._shown_at = time.monotonic()
        self._shown: int | None = None

    def show(self, completed: int, status: str) -> None:
        if time.monotonic() - self._shown_at >= self._interval_seconds:
            self._print(completed, status)

    def close(self, completed: int, status: str) -> None:
        if completed != self._shown:
            self._print(completed, status)

    def _print(self, completed: int, status: str) -> None:
        self._shown_at, self._shown = time.monotonic(), completed
        print(f"{self._description}  {status}", file=self._stream, flush=True)


class _Bar:
    """A rich bar, with the same figures behind it that a log file gets."""

    def __init__(self, description: str, total: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False),
            console=Console(file=stream, force_terminal=True),
            # Otherwise rich takes over a standard output that goes to a file, and it ends up here.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._rich.add_task(description, total=total, status="")
        self._rich.start()

    def show(self, completed: int, status: str) -> None:
        self._rich.update(self._task, completed=completed, status=status)

    def close(self, completed: int, status: str) -> None:
        self.show(completed, status)
        self._rich.stop()


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    dense, pruned, rounds = result["dense"], result["pruned"], result["rounds"]
    rows = [_row("dense", dense, dense["perplexity"], dense["parameters"])]
    for record in rounds:
        # The last round is the pruned model, which always knows its KV cache.
        record = {**(pruned if record is rounds[-1] else {}), **record}
        for state in ("sliced", "recovered"):
            name = f"round {record['round']} {state}"
            rows.append(_row(name, record, record[f"perplexity_{state}"], dense["parameters"]))
    return rows


def _row(name: str, model: Mapping[str, Any], perplexity: Any, dense: int) -> tuple[str, ...]:
    kv_bytes = model.get("kv_bytes_per_token")
    return (
        name,
        f"{model['parameters']:,}",
        f"{model['parameters'] / dense:.1%}",
        "-" if kv_bytes is None else f"{kv_bytes:,}",
        "-" if perplexity is None else f"{float(perplexity):,.2f}",
    )


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _duration(seconds: float) -> str:
    """3725.4 -> "1:02:05"; 45 -> "0:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figure(value: float | str) -> str:
    """Four digits are enough to watch: 3.1187 -> "3.119", 84123.4 -> "84123"."""
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
