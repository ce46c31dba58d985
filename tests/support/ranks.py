"""Run a function on several real ranks: one process each, gloo between them."""

from __future__ import annotations

import os
import queue
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.support.ports import free_port
from tests.support.warm import warm_context


def run_on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 240) -> list[Any]:
    """Call `function(*arguments)` on every rank. Returns plain results in the order of ranks.

    Raises:
        AssertionError: a rank raised (with its traceback), died, or did not end in time.
    """
    context = warm_context()
    results: Any = context.Queue()
    environment = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        context.Process(target=_rank, args=(rank, environment, function, arguments, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, results, time.monotonic() + seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(processes: list[Any], results: Any, deadline: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(processes):
        try:
            rank, ok, value = results.get(timeout=0.5)
        except queue.Empty:
            assert time.monotonic() < deadline, f"ranks {sorted(set(range(len(processes))) - found.keys())} hang"
            dead = [rank for rank, each in enumerate(processes) if each.exitcode and rank not in found]
            assert not dead, f"ranks {dead} died"
            continue
        assert ok, f"rank {rank}: {value}"
        found[rank] = value
    return [found[rank] for rank in range(len(processes))]


def _rank(rank: int, environment: dict[str, str], function: Callable[..., Any], arguments: Any, results: Any) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=environment["WORLD_SIZE"])
    try:
        results.put((rank, True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - reported to the test, which fails with it
        results.put((rank, False, traceback.format_exc()))
    results.close()
    results.join_thread()
