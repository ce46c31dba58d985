"""`metrics.jsonl`: the append-only record of everything a run measured, one JSON object a line.

    {"time": 1767225600.123, "step": 40, "tokens": 81920, "round": 1, "recover/loss": 3.12}

`time` is in unix seconds, `tokens` counts the tokens trained on so far over all rounds.
"""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AXES = ("time", "step", "tokens", "round")
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
BLOCK_BYTES = 1 << 16


class MetricsLog:
    """The writer of one `metrics.jsonl`. One process writes; any number may read meanwhile.

    A torn last line, left by a killed process, is dropped on opening: appended to, it would spoil
    the next line as well.

    Raises:
        OSError: the file cannot be opened, or (in `append`) the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is one write call, so that a kill loses at most the line being written.
        self._file = self.path.open("a+b", buffering=0)
        self.truncate(self._size())

    def append(self, metrics: Mapping[str, float | str], *, step: int, tokens: int, round: int) -> None:
        """Append one line.

        Raises:
            ValueError: a metric is named like an axis (`time`, `step`, `tokens`, `round`).
            TypeError: a value is no number and no string (a tensor, say: call `.item()` first).
        """
        if clash := [name for name in AXES if name in metrics]:
            raise ValueError(f"metrics may not be named {clash}: these are the axes of the log")
        axes = {"time": time.time(), "step": step, "tokens": tokens}
        record = {**axes, "round": round, **metrics}
        finite = {name: _json_value(value) for name, value in record.items()}
        line = json.dumps(finite, allow_nan=False).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "the last line was written only in part", str(self.path))

    def position(self) -> int:
        """Return the length of the log in bytes, for a checkpoint to remember and `truncate` to go back to."""
        # A checkpoint must not point past what a crash of the node would leave of the log.
        os.fsync(self._file.fileno())
        return self._size()

    def truncate(self, position: int) -> None:
        """Drop every line that does not end within the first `position` bytes.

        A restarted stage calls this to forget the lines of its unfinished attempt.

        Raises:
            ValueError: `position` is negative.
        """
        if position < 0:
            raise ValueError(f"position must be 0 or more bytes, got {position}")
        # Never beyond the end: the system would fill the gap with zero bytes.
        self._file.truncate(self._last_line_end(min(position, self._size())))

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _last_line_end(self, position: int) -> int:
        """Return the number of bytes up to and including the last newline before `position`."""
        while position > 0:
            start = max(0, position - BLOCK_BYTES)
            self._file.seek(start)
            newline = (self._file.read(position - start) or b"").rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
        return 0


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return all records of a log, oldest first; a torn last line is left out.

    Infinities and NaN come back as floats.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: a line other than a torn last one is no JSON.
    """
    complete_lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(complete_lines, 1)]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    return {name: NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def _json_value(value: float | str) -> float | str:
    """Return the value as JSON can hold it: strings stand in for NaN and infinities."""
    is_non_finite = isinstance(value, float) and not math.isfinite(value)
    return str(float(value)) if is_non_finite else value
