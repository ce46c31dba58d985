"""Signals that ask the job to stop: acknowledged at once, obeyed by all ranks together at the next safe point."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from transact.distributed.environment import PARENTS
from transact.errors import FAILED, leave, leave_after, speaks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
WARNINGS = ("SIGUSR1", "SIGUSR2")  # a cluster sends them some time before it takes the machines
# One Ctrl-C arrives twice: from the terminal, and from a launcher that passes it on.
SAME_KEY_SECONDS = 1.0
STOPPING = "stopping after this step; once more leaves at once"
LEAVE_SECONDS = 5.0  # to report and record it, after a second signal
ORPHAN_SECONDS = 120.0  # to save and leave, once the processes that would end this one are gone


def say(message: str) -> None:
    """Print a line on the original stderr, if it still works."""
    with suppress(OSError):  # the terminal may be gone
        # In one piece, as other threads print too; sys.stderr may be redirected, as for lm-eval's bars.
        print(f"{message}\n", end="", file=sys.__stderr__, flush=True)


def handle_all(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> dict[signal.Signals, Any]:
    """Handle the signals that ask a job to stop, and return their previous handlers; for the main thread.

    SIGHUP stays ignored where it is, as under nohup.
    """
    heeded = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in heeded}


def let_terminal_go() -> None:
    """Redirect stdout and stderr to /dev/null where their terminal is closed.

    A write that fails would end the job before it has saved.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


class Interruption:
    """The request to this rank to stop. Once asked it stays asked.

    Attributes:
        asked_by: the signal's name, or why else.
        say: shows the user a line.
        tell_others: called with what was asked, so that rank 0 can acknowledge what only another rank has received.
        left: called with the name of a second signal, before the process ends.

    Args:
        leave_seconds: after a warning (SIGUSR1 or SIGUSR2), when the process ends whatever it does: a stage that
            reacts to nothing would be killed with the job, and a job that is killed is not requeued. None: never.
        is_cluster: whether a cluster sends signals: it repeats SIGTERM before it kills, while this rank may still save.
    """

    def __init__(self, leave_seconds: float | None = None, *, is_cluster: bool = False) -> None:
        self._leave_seconds = leave_seconds
        self._is_cluster = is_cluster
        self._first: dict[str, float] = {}  # signal -> when it came
        self._deferred = 0
        self.asked_by: str | None = None
        self.tell_others: Callable[[str], None] = lambda name: None
        self.say: Callable[[str], None] = say
        self.left: Callable[[str], None] = self.say_left

    @property
    def is_deferred(self) -> bool:
        return self._deferred > 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep `ProcessGroup.turn` from stopping in this block: the work checks itself, and saves before it stops."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def listen(self) -> None:
        """Handle the signals of this process; for its main thread.

        Python runs handlers in the main thread alone, which may be inside a collective. So a thread reads the signals'
        numbers from a pipe, into which the interpreter writes them at once.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handle_all(lambda number, frame: None)
        threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()
        parents = [int(each) for each in os.environ.get(PARENTS, "").split()]
        if parents:
            threading.Thread(target=self._outlive, args=(parents,), name="parents", daemon=True).start()

    def hear(self, name: str) -> None:
        """Record a request to stop, which reached this rank or another; only the first counts."""
        if self.asked_by is None:
            self.asked_by = name
            self.tell_others(name)
            if speaks():
                self.say(f"{name}: {STOPPING}")

    def say_left(self, name: str) -> None:
        """Tell the user that a second signal ends the process at once."""
        if speaks():
            self.say(f"left at once, after a second {name}; what was finished stays")

    def _read(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in SIGNALS:
                    self._receive(signal.Signals(number).name, time.monotonic())

    def _receive(self, name: str, now: float) -> None:
        if name == "SIGHUP":
            let_terminal_go()
        code = 128 + signal.Signals[name].value
        if self.asked_by is None and name in WARNINGS and self._leave_seconds is not None:
            leave_after(self._leave_seconds, code)
        self.hear(name)
        is_second = now - self._first.setdefault(name, now) > SAME_KEY_SECONDS
        if is_second and (name == "SIGINT" or not self._is_cluster):
            leave_after(LEAVE_SECONDS, FAILED)
            try:
                self.left(name)
            finally:
                leave(FAILED, at_once=True)

    def _outlive(self, parents: list[int]) -> None:
        """Stop when one of these processes ends: none would be left to end this one, or to report how it ended."""
        number = wait_for_end(parents)
        leave_after(ORPHAN_SECONDS, FAILED)
        self.hear(f"the end of process {number}, which had started it")


def wait_for_end(processes: list[int]) -> int:
    """Wait until one of some processes, which need not be children, has ended, and return its process id."""
    descriptors: dict[int, int] = {}
    for number in processes:
        try:
            descriptors[os.pidfd_open(number)] = number
        except ProcessLookupError:
            return number
    ready, _, _ = select.select(list(descriptors), [], [])
    return descriptors[ready[0]]
