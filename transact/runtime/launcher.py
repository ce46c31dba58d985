"""Who started this process, and which rank it is: what the environment says, in the words of torchrun."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import MutableMapping

LOOPBACK = "127.0.0.1"
GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
INHERITED = (*GIVEN, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SUBMITIT_EXECUTOR")
PORTS = (20_000, 32_000)  # below those that Linux gives to outgoing connections


def environment_rank() -> int:
    """This process's rank as its launcher says; 0 where there is none."""
    return int(os.environ.get("RANK", "0"))


def environment_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def environment_local_rank() -> int:
    """Among the ranks of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def adopt_slurm_step(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in a step of SLURM.

    Nothing is changed under torchrun, inside srun or not, and where somebody has set them all. A batch script without
    srun is one process, although SLURM_NTASKS says otherwise there.
    """
    if "TORCHELASTIC_RUN_ID" in environ or all(name in environ for name in GIVEN):
        return
    if not all(environ.get(name) for name in ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")):
        return
    # A port that is another one after every restart: the last attempt's may not be free yet.
    attempt = ".".join(environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    is_one_node = environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = environ["SLURM_STEP_NUM_TASKS"]
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    environ["LOCAL_WORLD_SIZE"] = str(_tasks_here(environ))
    environ.setdefault("MASTER_ADDR", LOOPBACK if is_one_node else first_host(nodes))
    environ.setdefault("MASTER_PORT", str(random.Random(attempt).randint(*PORTS)))


def adopt_launcher(environ: MutableMapping[str, str] = os.environ) -> None:
    """Who this process is, in torchrun's words; one that nothing launched heeds no address that its shell exports."""
    adopt_slurm_step(environ)
    if "WORLD_SIZE" not in environ:
        forget_launcher(environ)


def forget_launcher(environ: MutableMapping[str, str] = os.environ) -> None:
    """Drop what the launcher of another job in the same shell said: a new job must not take it for its own."""
    for name in [each for each in environ if each in INHERITED or each.startswith("TORCHELASTIC_")]:
        del environ[name]


def free_port() -> int:
    """A port of this machine that nobody uses now.

    Raises:
        OSError: none of many was free.
    """
    for port in random.SystemRandom().sample(range(*PORTS), 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError(f"no port between {PORTS[0]} and {PORTS[1]} is free")


def first_host(nodes: str) -> str:
    """The first of a list as SLURM writes it: "gpu[003-004,7],cpu1" -> "gpu003". Containers have no scontrol to ask."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _tasks_here(environ: MutableMapping[str, str]) -> int:
    """SLURM_STEP_TASKS_PER_NODE counts them as "8(x2),4": two nodes with 8, then one with 4."""
    counts: list[int] = []
    for group in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = group.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else counts[0]
