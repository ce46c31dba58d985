"""The command in a real terminal: a pseudo-terminal of a hundred columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time

from tests.support.commands import REPOSITORY, command, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDES_CURSOR, SHOWS_CURSOR = "\x1b[?25l", "\x1b[?25h"


def transact_in_terminal(
    overrides: list[str], *, variables: dict[str, str] | None = None, umask: int = -1, seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    """The command to its end; stdout holds all that the terminal was sent, escape codes included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        command(overrides),
        cwd=REPOSITORY,
        env=environment() | {"TERM": "xterm"} | (variables or {}),
        umask=umask,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    sent = bytearray()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            block = os.read(ours, 65536)
        except OSError:  # Linux says so when the last process has closed the other end
            break
        sent += block
    os.close(ours)
    code = process.wait(max(0.0, deadline - time.monotonic()))
    return subprocess.CompletedProcess(process.args, code, sent.decode("utf-8", errors="replace"), "")


def without_escapes(sent: str) -> str:
    return ESCAPES.sub("", sent).replace("\r\n", "\n")
