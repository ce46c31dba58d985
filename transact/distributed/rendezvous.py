"""How ranks find each other: what the launcher says in the environment, and the store where they meet."""

from __future__ import annotations

import errno
import os
import socket
import time
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from transact.distributed.background import RUNNING, Background
from transact.distributed.environment import LOOPBACK, free_port
from transact.distributed.signals import Interruption, Stopped
from transact.distributed.slurm import own_job

START_TIMEOUT = timedelta(minutes=10)  # for the slowest rank to appear
PORT_SECONDS = 30.0
POLL_SECONDS = 0.1
REFUSAL_SECONDS = 10.0  # for the slowest rank to read why all of them leave


class Refused(ValueError):
    """The request cannot be met, on one rank at least."""


def complete_environment() -> None:
    """DeepSpeed looks for MPI when one of these is missing, so a single process gets them all."""
    os.environ.setdefault("MASTER_ADDR", LOOPBACK)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())  # of a process that is alone, and serves nothing there
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    if is_one_machine():
        # A job of one machine talks over its loopback alone: no other machine can reach its ports.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")


def is_one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE", "1") == os.environ["WORLD_SIZE"]


def _listener(port: int, address: str = LOOPBACK) -> socket.socket:
    """Waits a while for a port in use: the other ranks look for this one nowhere else."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            listener.bind((address, port))
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
    listener.listen()
    return listener


def meet(rank: int, world_size: int, interruption: Interruption, refusal: str | None) -> Any:
    """Wait for every rank. Returns the group's store.

    Raises: as `process_group`.
    """
    opening = Background(lambda: _open_store(rank, world_size))
    while opening.state == RUNNING:  # a client waits for the rank that serves it, deaf to signals
        opening.thread.join(POLL_SECONDS)
        _heed(interruption)
    if opening.error is not None:
        if _is_port_taken(opening.error) and own_job() is None:  # SLURM's next attempt takes another by itself
            taken = f"the environment's MASTER_PORT={os.environ['MASTER_PORT']} is not allowed: another process has it"
            raise Refused(taken) from None
        raise opening.error
    start = own_part(opening.result, "start")
    if refusal is not None:
        start.compare_set("refusal", "", refusal if rank == 0 else f"{refusal} (on rank {rank})")
    start.add("arrived", 1)
    deadline = time.monotonic() + START_TIMEOUT.total_seconds()
    while (arrived := start.add("arrived", 0)) < world_size:
        _heed(interruption)
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {arrived} of {world_size} ranks came within {START_TIMEOUT}")
        time.sleep(POLL_SECONDS)
    if start.check(["refusal"]):
        message = start.get("refusal").decode()
        _leave_together(start, rank, world_size)
        raise Refused(message)
    return opening.result


def _is_port_taken(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.EADDRINUSE or "EADDRINUSE" in str(error)  # torch's has no number


def _heed(interruption: Interruption) -> None:
    if interruption.asked_by is not None:
        raise Stopped(f"stopped by {interruption.asked_by}")


def _leave_together(start: Any, rank: int, world_size: int) -> None:
    """Rank 0, which may serve the store, goes last."""
    left = start.add("left", 1)
    deadline = time.monotonic() + REFUSAL_SECONDS
    while rank == 0 and left < world_size and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = start.add("left", 0)


def own_part(store: Any, name: str) -> Any:
    """Keys of their own in a store that may outlive this attempt, as torchrun's does."""
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}", store)


def _open_store(rank: int, world_size: int) -> Any:
    """The group's key-value store: torchrun's, or one that rank 0 serves; one process needs no port for it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world_size == 1 and not is_served:
        return HashStore()
    serves = rank == 0 and not is_served
    # Of several machines each must reach it, by whatever address: it listens on all.
    listener = _listener(port, address) if serves and is_one_machine() else None
    return TCPStore(
        address,
        port,
        world_size,
        is_master=serves,
        timeout=START_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
