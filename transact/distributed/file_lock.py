"""Locks on files: held by living processes only, so that nobody has to clean up after a dead one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transact.distributed.process import ProcessGroup

UNSUPPORTED = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
POLL_SECONDS = 0.2
LEASE_SECONDS = 150.0  # the time after which NFS and Lustre release the locks of a dead machine, and some more


@contextmanager
def exclusive(path: Path, *, wait: bool = True, remove: bool = False) -> Iterator[bool]:
    """Wait until no other process is inside this block with the same path.

    Args:
        wait: otherwise the block is entered at once, with False where another process is inside.
        remove: whoever holds the lock deletes the file on leaving the block, else it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a"))
            held = _flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not held or _is_still(path, file.fileno()):
                break  # else it was removed meanwhile: the lock is on a file that no other process will find
        try:
            yield held
        finally:
            if held and remove:
                path.unlink(missing_ok=True)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def run_lock(path: Path, group: ProcessGroup, patience_seconds: float) -> Iterator[None]:
    """Lock a run for all its ranks: no rank of another run is inside this block (collective).

    Rank 0 first takes the lock exclusively, so that it waits for the last rank of a run that is ending; then all ranks
    share it.

    Args:
        patience_seconds: time that another run has to leave, for example a job that was just killed. On another
            machine it has at least `LEASE_SECONDS`: the server may not know yet that the machine is dead.

    Raises:
        ValueError: on every rank: another run is at work here.
    """
    with path.open("a+", encoding="utf-8") as file:
        group.on_main(lambda: _take(path, file.fileno(), patience_seconds))
        if group.is_main:
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.ctime()}))
            file.flush()
        _flock(file.fileno(), fcntl.LOCK_SH)
        group.barrier()
        yield


@contextmanager
def held_by_one_run(path: Path, group: ProcessGroup, *, remove: bool = False) -> Iterator[None]:
    """Wait until no other run is inside this block with the same path (collective).

    Args:
        remove: as in `exclusive`.

    Raises:
        Stopped: on every rank, when any was asked to stop meanwhile.
    """
    with ExitStack() as stack:

        def wait() -> None:
            while True:
                with ExitStack() as attempt:
                    if attempt.enter_context(exclusive(path, wait=False, remove=remove)):
                        stack.enter_context(attempt.pop_all())
                        return
                time.sleep(POLL_SECONDS)

        group.on_main(wait, may_be_left=True)
        yield


def _take(path: Path, descriptor: int, patience_seconds: float) -> None:
    begin = time.monotonic()
    while not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
        is_far = _owner(path).get("host", socket.gethostname()) != socket.gethostname()
        deadline = begin + max(patience_seconds, LEASE_SECONDS if is_far else 0.0)
        if time.monotonic() > deadline:
            owner = ", ".join(f"{name} {value}" for name, value in _owner(path).items()) or "it does not say which"
            raise ValueError(
                f"{str(path.parent)!r} is in use by another run ({owner}): wait, stop it, or choose another name="
            )
        time.sleep(POLL_SECONDS)


def is_known_free(path: Path) -> bool:
    """Return whether it is certain that no living process holds the lock of a run.

    It is where this machine had the lock, and its disk supports locks.
    """
    if not path.is_file() or _owner(path).get("host") != socket.gethostname():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _flock(descriptor: int, operation: int) -> bool:
    """Try a lock operation and return whether the lock is held; a file system without locks keeps no process out."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True
