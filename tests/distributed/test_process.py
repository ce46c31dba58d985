"""Waiting for rank 0, and what the others learn of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.ranks import run_on_ranks


def outcomes() -> list[str]:
    from transact.distributed.process import process_group

    def slow() -> int:
        time.sleep(2.5)
        return 42

    def refuse() -> None:
        raise ValueError("no such text")

    def fail() -> None:
        raise OSError("disk full")

    found = []
    # Collectives time out after 1.2 seconds here: longer work passes because of the heartbeat.
    with process_group("cpu", 0.02) as group:
        for work in (slow, refuse, fail):
            try:
                found.append(str(group.on_main(work)))
            except Exception as error:  # noqa: BLE001 - the subject of the test
                found.append(f"{type(error).__name__}: {error}")
    return found


def test_long_work_on_rank_0_outlasts_the_timeout_and_errors_reach_every_rank() -> None:
    first, second = run_on_ranks(2, outcomes)
    assert first == ["42", "ValueError: no such text", "OSError: disk full"]
    assert second == ["42", "ValueError: no such text", "RankFailed: rank 0 failed: disk full"]


def wait_for_a_dead_rank() -> float:
    import os

    from transact.distributed.process import process_group

    with process_group("cpu", 1) as group:
        group.barrier()
        if not group.is_main:
            time.sleep(0.5)
            os._exit(0)
        begin = time.monotonic()
        try:
            group.on_main(lambda: time.sleep(60))
        except RuntimeError:
            os.environ["SECONDS"] = str(time.monotonic() - begin)
            print("noticed", flush=True)
            raise
    raise AssertionError("nobody noticed")


def test_a_dead_rank_is_noticed_while_rank_0_works() -> None:
    begin = time.monotonic()
    with pytest.raises(AssertionError, match="rank 0"):
        run_on_ranks(2, wait_for_a_dead_rank, seconds=40)
    assert time.monotonic() - begin < 40


def refusals() -> list[str]:
    import os

    from transact.distributed.process import process_group
    from transact.errors import Refusal

    try:
        with process_group("cpu", 1, refusal="no such folder" if os.environ["RANK"] == "1" else None):
            return ["joined"]
    except Refusal as refused:
        return [str(refused)]


def test_what_one_rank_refuses_all_refuse() -> None:
    """For the same reason, at once: nobody waits for a rank that left."""
    assert run_on_ranks(2, refusals, seconds=60) == [["no such folder (on rank 1)"]] * 2


def ask_to_stop_while_waiting(world_size: str) -> float:
    """A rank whose partner never comes. Seconds from the signal to the end of the wait."""
    import os
    import signal
    import threading

    from transact.distributed.process import process_group
    from transact.distributed.signals import Interruption
    from transact.errors import Stopped

    os.environ["WORLD_SIZE"] = world_size
    interruption = Interruption()
    interruption.listen()
    asked = []

    def ask() -> None:
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Timer(2.0, ask).start()
    try:
        with process_group("cpu", 1, interruption):
            raise AssertionError("nobody was to join")
    except Stopped:
        return time.monotonic() - asked[0]


def test_a_rank_that_waits_for_the_others_heeds_a_signal() -> None:
    (seconds,) = run_on_ranks(1, ask_to_stop_while_waiting, "2", seconds=60)
    assert seconds < 2


def heed_every_signal() -> list[str]:
    """Each signal comes to rank 1 alone, in the middle of a loop."""
    import os
    from dataclasses import replace

    from transact.distributed.process import process_group
    from transact.distributed.signals import SIGNALS, Interruption
    from transact.errors import Stopped

    heard = []
    with process_group("cpu", 1) as group:
        for number in SIGNALS:
            listening = replace(group, interruption=Interruption())
            listening.interruption.listen()
            try:
                for turn in range(1000):
                    if group.rank == 1 and turn == 3:
                        os.kill(os.getpid(), number)
                    listening.stop_if_asked()
                heard.append("nothing")
            except Stopped as stopped:
                heard.append(str(stopped))
    return heard


def test_a_signal_to_one_rank_stops_all_of_them_in_the_same_turn() -> None:
    expected = [f"stopped by {name}" for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")]
    assert run_on_ranks(2, heed_every_signal, seconds=60) == [expected] * 2


def wait_in_a_collective() -> None:
    """Rank 0 waits in C++, where Python's handlers never come to turn; rank 1 never joins it."""
    import os
    import threading

    from transact.distributed.process import process_group
    from transact.distributed.signals import Interruption

    interruption = Interruption()
    interruption.listen()
    with process_group("cpu", 30, interruption) as group:
        if group.rank == 1:
            time.sleep(600)
        for seconds in (1.0, 3.0):
            threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT]).start()
        group.barrier()


def test_a_second_ctrl_c_leaves_at_once_even_from_a_collective() -> None:
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"ranks \[0\] died"):
        run_on_ranks(2, wait_in_a_collective, seconds=60)
    assert time.monotonic() - begin < 30


def deep_in_a_stage_that_heeds_nothing() -> None:
    import os

    from transact.distributed.signals import Interruption

    Interruption(leave_seconds=1.0).listen()
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(600)


def test_warned_by_a_cluster_it_leaves_in_time_whatever_it_is_at() -> None:
    """With the exit code of a process that the signal ended, by which its job is queued again."""
    process = multiprocessing.get_context("spawn").Process(target=deep_in_a_stage_that_heeds_nothing)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 128 + signal.SIGUSR2


def test_products_in_float32_are_float32_whatever_the_image_says() -> None:
    """torch reads the variable, which NVIDIA's images set, when it is imported."""
    told = (
        "import torch; before = torch.get_float32_matmul_precision(); "
        "from transact.distributed.process import rank_device; rank_device('cpu', 0); "
        "print(before, torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision)"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-c", told]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["high", "highest", "ieee"]
