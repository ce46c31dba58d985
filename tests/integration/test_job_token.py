"""Other users of a machine can reach the store of a job: what they write there ends nothing and signs nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from transact.distributed import rendezvous as module
from transact.distributed.rendezvous import job_token, sign, signed_text
from transact.distributed.watchdog import ASKED, VERDICT, Watchdog

FORGED = ['{"rank": 0, "kind": "dead", "message": "forged"}', "", " ", "\x00", "é" * 9]


def test_only_the_token_opens_and_only_under_its_key() -> None:
    signed = sign(b"secret", "verdict", "rank 1 died").encode()
    assert signed_text(b"secret", "verdict", signed) == "rank 1 died"
    assert signed_text(b"other", "verdict", signed) is None
    assert signed_text(b"secret", "asked", signed) is None
    assert signed_text(b"secret", "verdict", signed.replace(b"1", b"2")) is None
    assert all(
        signed_text(b"secret", "verdict", each.encode()) is None
        for each in [*FORGED, "\udcff".encode("utf-8", "replace").decode()]
    )


def test_an_attacker_at_the_port_of_a_live_job_ends_and_signs_nothing() -> None:
    """He sees every key, and writes under all of them what he likes."""
    server = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    heard = threading.Event()
    dogs = [Watchdog(PrefixStore("job", server.clone()), rank, 2, 60, token=b"of the ranks") for rank in range(2)]
    dogs[0].when_asked = lambda name: heard.set()
    attacker = TCPStore("127.0.0.1", server.port, 2, is_master=False, wait_for_workers=False)
    for dog in dogs:
        dog.start()
    attacked = threading.Event()

    def attack() -> None:
        while not attacked.is_set():
            for text in (*FORGED, sign(b"", VERDICT, FORGED[0]), sign(b"guess", ASKED, "SIGTERM")):
                attacker.set(f"job/{VERDICT}", text)
                attacker.set(f"job/{ASKED}", text)

    thread = threading.Thread(target=attack)
    thread.start()
    assert all(dog.verdict(2.5) is None for dog in dogs)  # in several beats
    assert not heard.is_set()
    attacked.set()
    thread.join()
    assert f"job/{VERDICT}" in attacker.list_keys()
    dogs[1].ask("SIGINT")
    assert heard.wait(30)
    dogs[1].report("the disk is full")  # a real verdict finds its way past what the attacker left
    assert dogs[1].verdict(30) == "the disk is full"
    for dog in dogs:
        dog.end()  # as the main thread does, which reports the verdict itself


def test_ranks_of_one_machine_share_a_secret_that_is_their_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home" / "secret"
    monkeypatch.setattr(module, "SECRET", path)
    here = {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20001"}
    first = job_token(2, here)
    assert len(first) >= 32 and job_token(2, here) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert job_token(2, here | {"MASTER_PORT": "20002"}) != first
    assert job_token(2, here | {"TORCHELASTIC_RESTART_COUNT": "1"}) != first
    assert job_token(1, {}) != job_token(1, {})
    assert job_token(2, here | {"TRANSACT_JOB_TOKEN": "given"}) not in (first, b"")
    assert job_token(4, here) == b""  # several machines, and no launcher that has set one
    path.chmod(0o644)  # others have read it: it is no secret
    assert job_token(2, here) == b""
