"""What a rank takes of its machine: the device that its launcher means, which DeepSpeed reads, and its cores."""

from __future__ import annotations

import os

import pytest
import torch

from transact.distributed.process import rank_device, share_cores


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"),
    [
        *[(rank, 8, rank) for rank in range(8)],  # every rank sees all GPUs
        *[(rank, 1, 0) for rank in range(8)],  # SLURM shows each rank its own alone
        *[(rank, 2, rank) for rank in range(2)],  # the last node of an uneven job
    ],
)
def test_local_rank_becomes_the_devices_number(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, visible: int, index: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert rank_device("cuda", local_rank) == torch.device("cuda", index)
    assert os.environ["LOCAL_RANK"] == str(index)
    assert chosen == [index]


def test_on_cpu_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert rank_device("cpu", 3) == torch.device("cpu")
    assert os.environ["LOCAL_RANK"] == "3"


@pytest.mark.parametrize(
    ("ranks_here", "wish", "threads"), [("1", None, [8]), ("3", None, [2]), ("16", None, [1]), ("2", "5", [])]
)
def test_the_ranks_of_a_machine_share_its_cores_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, ranks_here: str, wish: str | None, threads: list[int]
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks_here)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if wish is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    share_cores()
    assert chosen == threads
