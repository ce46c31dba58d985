"""How ranks find each other: what the launcher says in the environment, and the store where they meet."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from transact.runtime.launcher import LOOPBACK

START_TIMEOUT = timedelta(minutes=10)  # for the slowest rank to appear


def environment_rank() -> int:
    """This process's rank as its launcher says; 0 where there is none."""
    return int(os.environ.get("RANK", "0"))


def environment_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def complete_environment() -> socket.socket | None:
    """DeepSpeed looks for MPI when one of these is missing, so a single process gets them all.

    Returns:
        The socket on which this process, which is alone, will serve its store.
    """
    listener = None
    os.environ.setdefault("MASTER_ADDR", LOOPBACK)
    if "MASTER_PORT" not in os.environ:
        listener = _listener(0)
        os.environ["MASTER_PORT"] = str(listener.getsockname()[1])
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == os.environ["WORLD_SIZE"]:
        # A job of one machine talks over its loopback alone: no other machine can reach its ports.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    return listener


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOOPBACK, port))
    listener.listen()
    return listener


def open_store(rank: int, world_size: int, listener: socket.socket | None) -> Any:
    """The group's key-value store: torchrun's, or one that rank 0 serves."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not is_served
    if serves and address == LOOPBACK and listener is None:
        listener = _listener(port)
    return TCPStore(
        address,
        port,
        world_size,
        is_master=serves,
        timeout=START_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if serves and listener is not None else None,
    )
