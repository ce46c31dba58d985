"""Whether the nodes of a cluster see a folder: judged from here, since a job that does not can say nothing at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path

# Of one machine alone, whatever else is true; those of disks may be exported to the nodes under the same name.
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "overlay", "aufs")
ON_DISK = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")
PRIVATE_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def check_shared(folder: Path, hosts: set[str]) -> None:
    """
    Args:
        hosts: names of the machines on which the job may run.

    Raises:
        ValueError: the folder looks like one of this machine alone, and other machines are among them.
    """
    others = sorted(host for host in hosts if host.split(".")[0] != socket.gethostname().split(".")[0])
    if not others:
        return
    kind, resolved = file_system(folder), os.path.realpath(folder)
    private = any(resolved == place or resolved.startswith(f"{place}/") for place in PRIVATE_PLACES)
    if kind in (*IN_MEMORY, *ON_DISK) or private:
        raise ValueError(
            f"output_dir={str(folder)!r} is on a file system of this machine ({kind}), which {others[0]} does not see: "
            "choose a folder that all nodes share (launch.shared_folder=true if this is one)"
        )


def file_system(path: Path) -> str:
    """The kind of the file system that a path is on, or will be on."""
    resolved = os.path.realpath(path)
    kinds: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")  # a space is written as \\040
        kinds[mount] = after.split()[0]
    inside = [mount for mount in kinds if mount == "/" or resolved == mount or resolved.startswith(f"{mount}/")]
    return kinds[max(inside, key=len)] if inside else "unknown"
