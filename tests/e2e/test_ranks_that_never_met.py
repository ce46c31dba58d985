"""launch=local: what happens to ranks when another one left before all had met."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import submitit

from transact.launching import local
from transact.runtime.rendezvous import LOOPBACK, _listener


def test_a_port_in_use_is_waited_for() -> None:
    other = socket.socket()
    other.bind((LOOPBACK, 0))
    other.listen()
    begin = time.monotonic()
    threading.Timer(1.0, other.close).start()
    with _listener(other.getsockname()[1]):
        assert 0.9 < time.monotonic() - begin < 10


def rank_0_leaves_at_once() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
        time.sleep(600)
    return 1


def test_a_rank_that_waits_for_one_that_left_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STRAGGLER_SECONDS", 2.0)
    executor = submitit.LocalExecutor(folder=tmp_path)
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    job = executor.submit(rank_0_leaves_at_once)
    watch = local._Watch(job, 2)
    deadline = time.monotonic() + 60
    while not watch.is_over():
        assert time.monotonic() < deadline
        time.sleep(0.1)
