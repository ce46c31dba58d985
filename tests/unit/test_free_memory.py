"""Free memory is what the machine and every cgroup around the process leave, whichever version of cgroups it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from transact.engine import free_memory
from transact.engine.free_memory import free_bytes, free_bytes_of_rank

CPU = torch.device("cpu")
NAMES = {1: free_memory.VERSION_1, 2: free_memory.VERSION_2}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available and no cgroups."""
    (tmp_path / "meminfo").write_text("MemTotal:  99999999 kB\nMemAvailable:  8000000 kB\nBuffers: 1 kB\n")
    (tmp_path / "cgroup").write_text("")
    monkeypatch.setattr(free_memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def limit(group: Path, version: int, most: str, used: int, reclaimable: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    names = NAMES[version]
    for name, content in zip(names[:2], (most, used), strict=True):
        (group / name).write_text(f"{content}\n")
    (group / "memory.stat").write_text(f"anon 5\n{names[2]} {reclaimable}\n")


def test_ranks_without_limits_share_what_the_machine_has(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(CPU) == free_bytes_of_rank(CPU) == 8_000_000 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes_of_rank(CPU) == 2_000_000 * 1024
    (machine / "cgroup").unlink()
    assert free_bytes(CPU) == 8_000_000 * 1024


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seen", ["all", "the top alone"])
def test_the_tightest_limit_of_the_groups_around_a_process_counts(machine: Path, version: int, seen: str) -> None:
    """Files that are only cached give way; in a container the own group is what is seen as the top."""
    controllers, path = ("memory", "/slurm/job_7/step_0") if version == 1 else ("", "/slurm/job_7/step_0")
    others = "3:cpuset:/\n" if version == 1 else ""
    (machine / "cgroup").write_text(f"{others}{version}:{controllers}:{path}\n")
    top = machine / "groups" / controllers
    job = top / "slurm" / "job_7" if seen == "all" else top
    limit(job, version, "3000000000", used=2_500_000_000, reclaimable=1_000_000_000)
    assert free_bytes(CPU) == 1_500_000_000
    if seen == "all":
        limit(job / "step_0", version, "max" if version == 2 else str(2**63 - 4096), used=1, reclaimable=0)
        assert free_bytes(CPU) == 1_500_000_000
        limit(job / "step_0", version, "1000", used=2000, reclaimable=0)
        assert free_bytes(CPU) == 0
