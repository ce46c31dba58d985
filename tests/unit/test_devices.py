"""What a rank takes of its machine: the device that its launcher means, cores, open files, the network."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Sequence

import pytest
import torch

from tests.support.configs import compose_config
from transact.config.machines import TRANSPORT
from transact.distributed.environment import TRANSPORT_PREFIXES, allow_open_files, transport_settings
from transact.distributed.process import check_device, rank_device, set_allocator, share_cores


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_segments_of_gpu_memory_grow_unless_the_user_says_otherwise(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    set_allocator(given)
    assert given == expected


def test_the_allocator_is_configured_before_cuda_is_asked_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen.append(os.environ.get("PYTORCH_ALLOC_CONF")))
    rank_device("auto", 0)
    assert seen == ["expandable_segments:True"]


def test_on_cpu_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert rank_device("cpu", 3) == torch.device("cpu")
    assert os.environ["LOCAL_RANK"] == "3"


ALL_CORES = ("a", range(8))


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        ([ALL_CORES], 8),
        ([ALL_CORES] * 3, 2),
        ([ALL_CORES] * 8, 1),
        ([ALL_CORES] * 16, 1),
        ([("a", [0, 1, 2]), ("a", [3, 4, 5]), ("b", [0, 1, 2])], 3),  # each bound to its own, as SLURM does
        ([("a", range(4)), ("a", range(4)), ("a", range(4, 8)), ("a", range(4, 8))], 2),  # to a socket
        ([("a", range(6))] * 6, 1),
        ([ALL_CORES, ("b", range(8)), ("c", range(8))], 8),  # a machine for each
    ],
)
def test_the_ranks_of_a_machine_share_the_cores_that_they_have_in_common(
    monkeypatch: pytest.MonkeyPatch, cores: list[tuple[str, Sequence[int]]], threads: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    share_cores(0, cores)
    assert chosen == [threads] and os.environ["RAYON_NUM_THREADS"] == str(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's wish
    monkeypatch.setenv("RAYON_NUM_THREADS", "6")
    share_cores(0, cores)
    assert chosen == [threads] and os.environ["RAYON_NUM_THREADS"] == "6"


@pytest.mark.parametrize(
    ("world_size", "limits", "raised"),
    [
        (1, (1024, 4096), None),
        (1000, (1024, 4096), (3512, 4096)),
        (1000, (1024, resource.RLIM_INFINITY), (3512, resource.RLIM_INFINITY)),
        (1000, (resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_limit_of_open_files_is_raised_to_what_the_group_needs(
    monkeypatch: pytest.MonkeyPatch, world_size: int, limits: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: chosen.append(both))
    allow_open_files(world_size)
    assert chosen == ([] if raised is None else [raised])


def test_a_machine_that_does_not_allow_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(
        ValueError, match=r"world_size=2,000 needs up to 6,512 open files in a process, .* allows 4,096"
    ):
        allow_open_files(2000)


def test_the_transport_is_told_by_its_variables_alone() -> None:
    assert transport_settings({"PATH": "/", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "lo", "MY_NCCL_KEY": "x"}) == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_DEBUG": "INFO",
    }
    for prefix in TRANSPORT_PREFIXES:  # what is told of the environment may be asked for, too
        assert re.fullmatch(TRANSPORT.pattern or "", f"{prefix}DEBUG")
    asked = compose_config(["name=x", "+launch.transport={NCCL_IB_DISABLE:1}"])
    assert asked.launch.transport == {"NCCL_IB_DISABLE": "1"}
    with pytest.raises(ValueError, match=r"launch\.transport.*LD_PRELOAD.*NCCL_SOCKET_IFNAME"):
        compose_config(["name=x", "+launch.transport={LD_PRELOAD:evil}"])


@pytest.mark.parametrize("requested", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("gpus", "own", "fits"), [(1, None, False), (2, None, False), (4, None, True), (1, "3", True), (2, "0,1", False)]
)
def test_ranks_of_torchrun_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, requested: str, gpus: int, own: str | None, fits: bool
) -> None:
    """own: CUDA_VISIBLE_DEVICES; with a wrapper that shows each rank its own GPU alone, that is number 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("SUBMITIT_EXECUTOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    given = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}
    for name, value in (given | ({} if own is None else {"CUDA_VISIBLE_DEVICES": own})).items():
        monkeypatch.setenv(name, value)
    if fits:
        return check_device(requested)
    with pytest.raises(ValueError, match=rf"rank 3 of this machine is not allowed on {gpus} GPU\(s\)"):
        check_device(requested)


@pytest.mark.parametrize("requested", ["auto", "cuda"])
@pytest.mark.parametrize(("gpus", "rank", "fits"), [(1, 1, False), (2, 3, False), (2, 1, True), (8, 7, True)])
def test_ranks_of_one_machine_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, requested: str, gpus: int, rank: int, fits: bool
) -> None:
    """Those of launch=local see all GPUs; NCCL refuses two ranks on one, after all preparations."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    given = {"SUBMITIT_EXECUTOR": "local", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(rank + 1)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    check_device("cpu")
    if fits:
        return check_device(requested)
    with pytest.raises(ValueError, match=rf"launch.processes={rank + 1} is not allowed on {gpus} GPU"):
        check_device(requested)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a driver too old for this torch: CPUs are used
    check_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")  # which shows each rank its own, as number 0
    return check_device("auto")
