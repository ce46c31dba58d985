"""What memory of its device a rank can still take: of a GPU, or of the machine within the limits of its cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMORY_INFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Of a version of cgroups: limit, what is used, and what of that the system takes back when it is asked for.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a process can take of the device now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    lines = MEMORY_INFO.read_text(encoding="utf-8").splitlines()
    (available,) = (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min([available, *_left_in_cgroups()])


def free_bytes_of_rank(device: torch.device) -> int:
    """Return this rank's part of what is free: ranks without a GPU share the memory of their machine equally."""
    ranks_here = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free_bytes(device) // ranks_here


def _left_in_cgroups() -> list[int]:
    """Return what is left below the limit of each group that this process belongs to; SLURM sets one for a job."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = VERSION_2 if controllers == "" else VERSION_1
        if controllers not in ("", "memory"):
            continue
        top = CGROUPS / controllers
        group = top / path.lstrip("/")
        # In a container the path may be that of the host, of which only the top is seen.
        found += [_left(each, names) for each in (group, *group.parents) if each.is_relative_to(top)]
    return [left for left in found if left is not None]


def _left(group: Path, names: tuple[str, str, str]) -> int | None:
    limit, usage, reclaimable = names
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        most, used = ((group / name).read_text(encoding="utf-8").strip() for name in (limit, usage))
        return None if most == "max" else max(0, int(most) - int(used) + int(statistics.get(reclaimable, "0")))
    except (OSError, ValueError):  # the top has no limit, and a container may show none
        return None
