"""Leaving: with exit handlers and buffers or at once, by a timer whatever the process is at; and what asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import REPOSITORY

LEAVING = """
import atexit, sys, time
from transact.errors import leave, leave_after
atexit.register(print, "closed")
{how}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("leave(5)", "closed\n"),
        ("leave(5, at_once=True)", ""),
        ("leave_after(0.05, 5)", ""),
        ("leave_after(0.2, 4).cancel(); time.sleep(0.4); leave(5)", "closed\n"),
    ],
)
def test_leaving(how: str, said: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LEAVING.format(how=how)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (5, said, "")


LISTENING = """
import signal, time
signal.signal(signal.SIGHUP, signal.{handled})
from transact.distributed.signals import Interruption
interruption = Interruption()
interruption.listen()
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.raise_signal(number)
    time.sleep(0.2)
print(interruption.asked_by)
"""


@pytest.mark.parametrize(("handled", "heard"), [("SIG_DFL", "SIGHUP"), ("SIG_IGN", "SIGTERM")])
def test_the_end_of_the_terminal_asks_to_stop_but_not_under_nohup(handled: str, heard: str) -> None:
    script = LISTENING.format(handled=handled)
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (0, f"{heard}\n")
