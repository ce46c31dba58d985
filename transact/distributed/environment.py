"""The launcher and the rank of this process, as the environment variables say, under the names of torchrun."""

from __future__ import annotations

import os
import random
import re
import resource
import socket
import time
from collections.abc import Mapping, MutableMapping

LOOPBACK = "127.0.0.1"
GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER = "TRANSACT_LAUNCHER"  # id of the process that waits for the ranks and reports how they ended
PARENTS = "TRANSACT_PARENTS"  # ids of the processes that started this one; it stops when one of them ends
JOB_TOKEN = "TRANSACT_JOB_TOKEN"  # a secret of the ranks of a job
INHERITED = (*GIVEN, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SUBMITIT_EXECUTOR", LAUNCHER, PARENTS, JOB_TOKEN)
MOST = 10**6
ADDRESS_SECONDS = 5.0  # for the resolver to know a machine's name
OF_TORCHRUN = {
    "RANK": (0, MOST),
    "WORLD_SIZE": (1, MOST),
    "LOCAL_RANK": (0, MOST),
    "LOCAL_WORLD_SIZE": (1, MOST),
    "MASTER_PORT": (1, 65_535),
    "TORCHELASTIC_RESTART_COUNT": (0, MOST),
}  # least and largest value
OF_SLURM = {
    "SLURM_PROCID": (0, MOST),
    "SLURM_LOCALID": (0, MOST),
    "SLURM_NODEID": (0, MOST),
    "SLURM_STEP_NUM_TASKS": (1, MOST),
    "SLURM_STEP_NUM_NODES": (1, MOST),
    "SLURM_RESTART_COUNT": (0, MOST),
}
PORTS = (20_000, 32_000)  # below those that Linux gives to outgoing connections


def environment_rank() -> int:
    """Return this process's rank as its launcher says; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def environment_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def environment_local_rank() -> int:
    """Return this process's rank among the ranks of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def adopt_slurm_step(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in a step of SLURM.

    Nothing is changed under torchrun, inside srun or not, and where rank, world size, address and port are all set. A
    batch script without srun is one process, although SLURM_NTASKS says otherwise there.
    """
    if "TORCHELASTIC_RUN_ID" in environ or all(name in environ for name in GIVEN):
        return
    if not all(environ.get(name) for name in ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")):
        return
    # Another port after every restart: the last attempt's may not be free yet.
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
    """Set and check the variables of torchrun for this process.

    Without a launcher they are removed: an address that the shell exports is ignored.

    Raises:
        ValueError: a variable is not an allowed number, or they contradict each other.
    """
    _check_numbers(environ, OF_SLURM)
    adopt_slurm_step(environ)
    if "WORLD_SIZE" not in environ:
        forget_launcher(environ)
        return
    _check_numbers(environ, OF_TORCHRUN)
    _check_together(environ)


def launched_processes(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes the launcher has started, srun among them, without changing anything.

    Raises:
        ValueError: as `adopt_launcher`.
    """
    adopted = dict(environ)
    adopt_launcher(adopted)
    return int(adopted.get("WORLD_SIZE", "1"))


def check_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Check what `adopt_launcher` checks, without changing anything, and that rank 0's given address is known here.

    Raises:
        ValueError: as `adopt_launcher`; or no machine has that address, and the ranks would wait for it.
    """
    if launched_processes(environ) > 1 and "MASTER_ADDR" in environ:  # the nodes that SLURM names exist
        _check_address(environ["MASTER_ADDR"])


def _check_address(address: str) -> None:
    """Raise ValueError if no machine has this name; a name server that is out of reach says nothing about it."""
    deadline = time.monotonic() + ADDRESS_SECONDS
    while True:
        try:
            socket.getaddrinfo(address, None)
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            if error.errno != socket.EAI_NONAME:
                return
        except UnicodeError:
            pass  # not a valid name
        else:
            return
        raise ValueError(f"the environment's MASTER_ADDR={address!r} is not allowed: no machine has this name")


def _check_numbers(environ: Mapping[str, str], bounds: Mapping[str, tuple[int, int]]) -> None:
    for name, (least, most) in bounds.items():
        value = environ.get(name, str(least))
        if re.fullmatch(r"[0-9]{1,10}", value) is None or not least <= int(value) <= most:
            raise ValueError(
                f"the environment's {name}={value!r} is not allowed: it must be a number, {least} to {most}"
            )


def _check_together(environ: Mapping[str, str]) -> None:
    world_size = int(environ["WORLD_SIZE"])
    missing = [name for name in GIVEN if not environ.get(name, "").strip()]
    if world_size > 1 and missing:
        raise ValueError(
            f"the environment says WORLD_SIZE={world_size} without {', '.join(missing)}: start all ranks with torchrun "
            "or srun, or unset WORLD_SIZE"
        )
    for inner, outer in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE")):
        if outer in environ and int(environ.get(inner, "0")) >= int(environ[outer]):
            raise ValueError(
                f"the environment's {inner}={environ[inner]} is not allowed: it must be below {outer}={environ[outer]}"
            )
    if int(environ.get("LOCAL_WORLD_SIZE", "1")) > world_size:
        raise ValueError(
            f"the environment's LOCAL_WORLD_SIZE={environ['LOCAL_WORLD_SIZE']} is not allowed: it must be at most "
            f"WORLD_SIZE={world_size}"
        )


def forget_launcher(environ: MutableMapping[str, str] = os.environ) -> None:
    """Drop the variables of another job's launcher in the same shell: a new job must not take them for its own."""
    for name in [each for each in environ if each in INHERITED or each.startswith("TORCHELASTIC_")]:
        del environ[name]


def free_port() -> int:
    """Return a port of this machine that is free now.

    Raises:
        OSError: none of many ports was free.
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
    """Return the first host of a list as SLURM writes it: "gpu[003-004,7],cpu1" -> "gpu003".

    Containers have no scontrol to ask.
    """
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _tasks_here(environ: MutableMapping[str, str]) -> int:
    """Return the number of tasks on this node.

    SLURM_STEP_TASKS_PER_NODE counts them as "8(x2),4": two nodes with 8, then one with 4.
    """
    counts: list[int] = []
    for group in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = group.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else counts[0]


TRANSPORT_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_")


def transport_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of NCCL, gloo and the libraries below them that this process has."""
    found = (name for name in sorted(environ) if name.startswith(TRANSPORT_PREFIXES))
    return {name: environ[name] for name in found if name != "NCCL_VERSION"}  # which images state, and nothing reads


# gloo connects all ranks with all, and rank 0 serves the store that all watchdogs use: measured on 1 to 12 ranks, it
# has 25 files and 3 for each rank, the others fewer. The rest is for what a job reads and writes, and for NCCL.
FILES_OF_A_RANK = 3
FILES_OF_A_JOB = 512


def allow_open_files(world_size: int) -> None:
    """Raise this process's limit of open files to what a group of that size needs.

    Raises:
        ValueError: the machine does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_RANK * world_size + FILES_OF_A_JOB
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"world_size={world_size:,} needs up to {needed:,} open files in a process, and this machine allows "
            f"{hard:,}: raise the hard limit (ulimit -Hn; on SLURM LimitNOFILE of slurmd), or use fewer ranks"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
