"""Waiting for rank 0, and what the others learn of it."""

from __future__ import annotations

import time

import pytest

from tests.support.ranks import run_on_ranks


def outcomes() -> list[str]:
    from transact.runtime.process import process_group

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
    assert second == ["42", "ValueError: no such text", "RuntimeError: rank 0 failed: disk full"]


def wait_for_a_dead_rank() -> float:
    import os

    from transact.runtime.process import process_group

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
