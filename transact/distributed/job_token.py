"""A secret that only the ranks of a job share: what one tells the others through the store is signed with it.

The store of torch answers whoever reaches its port, and lists its keys to him: a prefix that nobody knows would hide
nothing. So what ends a job carries a code that only a rank can compute.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from transact.distributed.environment import JOB_TOKEN

SECRET = Path("~/.cache/transact/secret")
SECRET_BYTES = 32


def new_token() -> str:
    return secrets.token_hex(SECRET_BYTES)


def job_token(world_size: int, environ: Mapping[str, str] = os.environ) -> bytes:
    """The launcher's, where it has set one; a random one for a single process; on one machine one that follows from a
    secret file of this user. Empty for ranks on several machines that were started without: they share no secret."""
    given = environ.get(JOB_TOKEN)
    if given:  # another one for every attempt of torchrun, whose store outlives them
        return _code(given.encode(), environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world_size == 1:
        return new_token().encode()
    if environ.get("LOCAL_WORLD_SIZE") != str(world_size):
        return b""
    meeting = " ".join(environ.get(name, "0") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    secret = _user_secret(SECRET.expanduser())
    return _code(secret, meeting) if secret else b""


def sign(token: bytes, key: str, text: str) -> str:
    return f"{_code(token, f'{key} {text}').decode()} {text}"


def signed_text(token: bytes, key: str, signed: bytes) -> str | None:
    """What was signed for this key; None if it was not, or with another token."""
    code, _, text = signed.decode(errors="replace").partition(" ")
    return text if hmac.compare_digest(code.encode(), _code(token, f"{key} {text}")) else None


def _code(token: bytes, text: str) -> bytes:
    return hmac.new(token, text.encode(errors="replace"), hashlib.sha256).hexdigest().encode()


def _user_secret(path: Path) -> bytes:
    """Made by the first rank that looks; empty where there is no home to keep it in, or where others can read it."""
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
