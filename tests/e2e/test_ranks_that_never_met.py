"""launch=local: what ranks are given, and what happens to them when one leaves early or the time is over."""

from __future__ import annotations

import shlex
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.commands import Workplace
from tests.support.slurm import wait_for
from transact.config.compose import compose_config
from transact.distributed import rendezvous
from transact.distributed.rendezvous import LOOPBACK, meet
from transact.distributed.signals import SIGNALS, Interruption
from transact.errors import Refusal
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
        with pytest.raises(Refusal, match=f"MASTER_PORT={port} is not allowed: another process has it"):
            rendezvous.meet(0, 2, Interruption(), None)


def controlled(script: str, limit_seconds: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes of two ranks that are a shell script each."""
    command = shlex.join(["sh", "-c", script])
    variables = {"NTASKS": "2", "COMMAND": command, "TIMEOUT_S": str(limit_seconds), "SIGNAL_DELAY_S": "30"}
    for name, value in (variables | {"WITH_SHELL": ""}).items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_STDERR_TO_STDOUT", "1")
    monkeypatch.setenv(executors.BEGAN, str(time.time()))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    run = RunFolder(folder)
    controller = executors.RankController(folder / "logs")
    run.open(2)
    try:
        controller.start_tasks()
        return list(controller.wait())
    finally:
        controller.kill_tasks()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_at_the_time_limit_ranks_may_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than a rank is given that goes on after another has left."""
    monkeypatch.setattr(executors, "KILL_SECONDS", 0.2)
    saves = "trap 'sleep 1; exit 3' TERM; while true; do sleep 0.1; done"
    assert controlled(saves, 1, tmp_path, monkeypatch) == [3, 3]


@pytest.mark.parametrize("shown", ["2,3", "", None])
def test_ranks_see_the_gpus_that_the_command_sees(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    config = compose_config([*workplace.overrides("gpus"), f"output_dir={tmp_path}/run", "launch=local"])
    job = executors.submit_locally(config, tmp_path / "run" / "logs", time.time())
    controller = psutil.Process(int(job.job_id))
    try:
        wait_for(controller.children, 60, "a rank")
        for rank in controller.children():
            assert rank.environ().get("CUDA_VISIBLE_DEVICES") == shown
    finally:
        for process in (*controller.children(), controller):
            process.kill()
        psutil.wait_procs([controller], timeout=10)


def test_ranks_that_go_on_after_another_has_left_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that heeds no signal, as a suspended one; nothing that the launcher has killed is taken for a cause."""
    monkeypatch.setattr(executors, "STRAGGLER_SECONDS", 0.5)
    monkeypatch.setattr(executors, "KILL_SECONDS", 0.5)
    deaf = "test $SUBMITIT_LOCAL_GLOBALID = 0 && exit 1; trap '' TERM; while true; do sleep 0.1; done"
    assert controlled(deaf, 300, tmp_path, monkeypatch) == [1, -signal.SIGKILL]
    assert read_json(tmp_path / "run.json")["error"] == ("rank 0 died in the start: exit code 1, and it left no reason")
