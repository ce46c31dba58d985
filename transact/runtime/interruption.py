"""Signals that ask the job to stop: noted at once, heeded by all ranks together at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time

from transact.exit_codes import FAILED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
WARNINGS = ("SIGUSR1", "SIGUSR2")  # of a cluster, some time before it takes the machines
# A terminal and a launcher that passes it on both deliver one Ctrl-C.
SAME_KEY_SECONDS = 1.0


class Stopped(Exception):
    """The job was asked to stop, and did so with everything saved."""


class Interruption:
    """What this rank was asked. Once asked it stays asked.

    leave_seconds: after a warning (SIGUSR1 or SIGUSR2), when the process ends whatever it is at: a stage that heeds
    nothing would be killed with the job, and a job that is killed is not queued again. None: never.
    """

    def __init__(self, leave_seconds: float | None = None) -> None:
        self._leave_seconds = leave_seconds
        self.asked_by: str | None = None
        self._interrupted_at: float | None = None  # by the first Ctrl-C

    def listen(self) -> None:
        """Take over the signals of this process; from its main thread.

        Python runs handlers in the main thread alone, which may be deep inside a collective: so a thread reads the
        numbers that arrive from a pipe, into which the interpreter writes them at once.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()

    def _read(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in SIGNALS:
                    self._receive(signal.Signals(number).name, time.monotonic())

    def _receive(self, name: str, now: float) -> None:
        if self.asked_by is None and name in WARNINGS and self._leave_seconds is not None:
            code = 128 + signal.Signals[name].value
            last_resort = threading.Timer(self._leave_seconds, os._exit, [code])
            last_resort.daemon = True
            last_resort.start()
        self.asked_by = self.asked_by or name
        if name != "SIGINT":
            return
        if self._interrupted_at is None:
            self._interrupted_at = now
        elif now - self._interrupted_at > SAME_KEY_SECONDS:
            os._exit(FAILED)
