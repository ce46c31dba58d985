"""Processes that begin with the heavy imports done, which would take seconds of each: one server imports, and forks."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.support.ports import free_port

# The first sets the server's environment, which some of the others read when they are imported.
PRELOADED = [
    "tests.support.offline",
    "transact.run",
    "transact.worker",
    "transact.chain",
    "transact.runtime.engine",
    "transact.launching.executors",
    "tests.support.heavy",
]


def warm_context() -> ForkServerContext:
    gone = [name for name in PRELOADED if importlib.util.find_spec(name) is None]
    assert not gone, f"these modules do not exist, and the server would pass over them in silence: {gone}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_warm(
    overrides: list[str], *, ranks: int, cwd: Path, environment: dict[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """The command in processes of its own, one for each rank, as torchrun would start them.

    Raises:
        subprocess.TimeoutExpired: it does not end in time.
    """
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name, "stdout"), Path(name, "stderr")]
        group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = str(free_port())
        processes = []
        for rank in range(ranks):
            place = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            arguments = (overrides, cwd, environment | place, outputs)
            processes.append(warm_context().Process(target=_command, args=arguments))
            processes[-1].start()
        deadline = time.monotonic() + seconds
        try:
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.join()
        stdout, stderr = (path.read_text() for path in outputs)
    if None in codes:
        raise subprocess.TimeoutExpired(overrides, seconds, stdout, stderr)
    code = max((each for each in codes if each is not None), key=abs)
    return subprocess.CompletedProcess(overrides, code, stdout, stderr)


def _command(overrides: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["transact.run", *overrides]
    from transact.exit_codes import leave
    from transact.run import main

    leave(main())
