"""Signals that ask the job to stop: noted at once, heeded by all ranks together at the next safe point."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from transact.exit_codes import FAILED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
# A terminal and a launcher that passes it on both deliver one Ctrl-C.
SAME_KEY_SECONDS = 1.0


class Stopped(Exception):
    """The job was asked to stop, and did so with everything saved."""


class Interruption:
    """What this rank was asked. Once asked it stays asked."""

    def __init__(self) -> None:
        self.asked_by: str | None = None
        self._asked_at = 0.0

    def listen(self) -> None:
        """Take over the signals of this process; from its main thread."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if name == self.asked_by == "SIGINT" and now - self._asked_at > SAME_KEY_SECONDS:
            os._exit(FAILED)  # the main thread may be deep inside a collective
        if self.asked_by is None:
            self.asked_by, self._asked_at = name, now
