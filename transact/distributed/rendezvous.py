"""How ranks find each other, and how they sign messages, so that those of other processes do not count."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from transact.distributed.environment import JOB_TOKEN, LOOPBACK, free_port
from transact.distributed.signals import Interruption
from transact.distributed.slurm import own_job
from transact.errors import Refusal, Stopped

RUNNING, DONE, FAILED = 0, 1, 2


class Background:
    """Work in a daemon thread, which starts at once and does not keep the process alive when it is left."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.state = RUNNING
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
            self.state = DONE
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.error = error
            self.state = FAILED


SECRET = Path("~/.cache/transact/secret")
SECRET_BYTES = 32


def new_token() -> str:
    """Return a random secret for the ranks of one job."""
    return secrets.token_hex(SECRET_BYTES)


def job_token(world_size: int, environ: Mapping[str, str] = os.environ) -> bytes:
    """Return the secret that the ranks of a job share and sign with.

    The launcher's, where it has set one; a random one for a single process; on one machine one that follows from a
    secret file of this user. Empty for ranks on several machines that were started without: they share no secret.
    """
    given = environ.get(JOB_TOKEN)
    if given:  # a different one for every attempt of torchrun, whose store outlives them
        return _code(given.encode(), environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world_size == 1:
        return new_token().encode()
    if environ.get("LOCAL_WORLD_SIZE") != str(world_size):
        return b""
    meeting = " ".join(environ.get(name, "0") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    secret = _user_secret(SECRET.expanduser())
    return _code(secret, meeting) if secret else b""


def sign(token: bytes, key: str, text: str) -> str:
    """Return a text behind its signature for this key, as `signed_text` reads it."""
    return f"{_code(token, f'{key} {text}').decode()} {text}"


def signed_text(token: bytes, key: str, signed: bytes) -> str | None:
    """Return the text that was signed for this key, or None if it was not, or with another token."""
    code, _, text = signed.decode(errors="replace").partition(" ")
    return text if hmac.compare_digest(code.encode(), _code(token, f"{key} {text}")) else None


def _code(token: bytes, text: str) -> bytes:
    return hmac.new(token, text.encode(errors="replace"), hashlib.sha256).hexdigest().encode()


def _user_secret(path: Path) -> bytes:
    """Return this user's secret, which the first rank that looks makes.

    Empty where there is no home folder to keep it in, or where others can read it.
    """
    with suppress(OSError, RuntimeError):
        if not path.exists():
            _make_secret(path)
        about = path.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o077:
            return path.read_bytes()
    return b""


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(SECRET_BYTES))
        os.fsync(descriptor)
        with suppress(FileExistsError):  # another rank was faster: its secret counts
            os.link(temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink()


START_TIMEOUT = timedelta(minutes=10)  # for the slowest rank to arrive
PORT_SECONDS = 30.0
POLL_SECONDS = 0.1
REFUSAL_SECONDS = 10.0  # for the slowest rank to read why all of them leave


def complete_environment() -> None:
    """Set the variables that are missing for a single process: without one of them DeepSpeed looks for MPI."""
    os.environ.setdefault("MASTER_ADDR", LOOPBACK)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())  # for a single process, which serves nothing there
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    if is_one_machine():
        # A job of one machine uses its loopback alone: no other machine can reach its ports.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")


def is_one_machine() -> bool:
    """Return whether all ranks are on this machine."""
    return os.environ.get("LOCAL_WORLD_SIZE", "1") == os.environ["WORLD_SIZE"]


def _listener(port: int, address: str = LOOPBACK) -> socket.socket:
    """Return a listening socket; wait a while for a port in use, as the other ranks look for this one nowhere else."""
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
    """Wait for every rank, and return the group's store (collective).

    Raises:
        Refusal, Stopped, TimeoutError: as `process_group`; Refusal also where another process has the port.
    """
    opening = Background(lambda: _open_store(rank, world_size))
    while opening.state == RUNNING:  # a client that waits for the rank that serves it does not react to signals
        opening.thread.join(POLL_SECONDS)
        _heed(interruption)
    if opening.error is not None:
        if _is_port_taken(opening.error) and own_job() is None:  # SLURM's next attempt takes another port by itself
            taken = f"the environment's MASTER_PORT={os.environ['MASTER_PORT']} is not allowed: another process has it"
            raise Refusal(taken) from None
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
        raise Refusal(message)
    return opening.result


def _is_port_taken(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.EADDRINUSE or "EADDRINUSE" in str(error)  # torch's has no number


def _heed(interruption: Interruption) -> None:
    if interruption.asked_by is not None:
        raise Stopped(interruption.asked_by)


def _leave_together(start: Any, rank: int, world_size: int) -> None:
    """Wait on rank 0, which may serve the store, until the others have left."""
    left = start.add("left", 1)
    deadline = time.monotonic() + REFUSAL_SECONDS
    while rank == 0 and left < world_size and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = start.add("left", 0)


def own_part(store: Any, name: str) -> Any:
    """Return a store with keys of this attempt alone, in one that may outlive it, as torchrun's does."""
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}", store)


def store_of_one() -> Any:
    """Return a key-value store of this process by itself."""
    return HashStore()


def _open_store(rank: int, world_size: int) -> Any:
    """Return the group's key-value store: torchrun's, or one that rank 0 serves; one process needs no port for it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world_size == 1 and not is_served:
        return store_of_one()
    serves = rank == 0 and not is_served
    # With several machines it listens on all addresses: each machine must reach it.
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
