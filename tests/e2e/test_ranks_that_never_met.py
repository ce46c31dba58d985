"""launch=local: what happens to ranks when another one left before all had met."""

from __future__ import annotations

import shlex
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from transact.distributed import rendezvous
from transact.distributed.rendezvous import LOOPBACK, meet
from transact.distributed.signals import Interruption
from transact.files import read_json
from transact.launch import executors
from transact.runs.run_folder import RunFolder


def test_a_port_in_use_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    other = socket.socket()
    other.bind((LOOPBACK, 0))
    other.listen()
    here = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(other.getsockname()[1])}
    for name, value in (here | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    threading.Timer(1.0, other.close).start()
    with ThreadPoolExecutor() as ranks:
        list(ranks.map(lambda rank: meet(rank, 2, Interruption(), None), range(2)))
    assert 0.9 < time.monotonic() - begin < 20


@pytest.mark.parametrize("ranks_here", ["2", "1"])
def test_a_port_that_somebody_keeps_is_refused(ranks_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine, where we listen ourselves, and on several, where torch does."""
    monkeypatch.setattr(rendezvous, "PORT_SECONDS", 0.2)
    with socket.create_server((LOOPBACK, 0)) as other:
        port = str(other.getsockname()[1])
        given = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": ranks_here}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(rendezvous.Refused, match=f"MASTER_PORT={port} is not allowed: another process has it"):
            rendezvous.meet(0, 2, Interruption(), None)


def test_ranks_that_go_on_after_another_has_left_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that heeds no signal, as a suspended one; nothing that the launcher has killed is taken for a cause."""
    monkeypatch.setattr(executors, "STRAGGLER_SECONDS", 0.5)
    monkeypatch.setattr(executors, "KILL_SECONDS", 0.5)
    deaf = "test $SUBMITIT_LOCAL_GLOBALID = 0 && exit 1; trap '' TERM; while true; do sleep 0.1; done"
    variables = {"NTASKS": "2", "COMMAND": shlex.join(["sh", "-c", deaf]), "TIMEOUT_S": "300", "SIGNAL_DELAY_S": "30"}
    for name, value in (variables | {"WITH_SHELL": ""}).items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_STDERR_TO_STDOUT", "1")
    before = signal.getsignal(signal.SIGTERM)
    run = RunFolder(tmp_path)
    controller = executors.RankController(tmp_path / "logs")
    run.open(2)
    try:
        controller.start_tasks()
        assert controller.wait() == [1, -signal.SIGKILL]
    finally:
        controller.kill_tasks()
        signal.signal(signal.SIGTERM, before)
    assert read_json(tmp_path / "run.json")["error"] == ("rank 0 died in the start: exit code 1, and it left no reason")
