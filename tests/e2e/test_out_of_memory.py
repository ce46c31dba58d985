"""Memory that really ends: the last line says where, what took most of it and what to change; nothing is spoilt."""

from __future__ import annotations

import resource
import subprocess

import psutil

from tests.support.commands import Workplace, transact
from tests.support.runs import record_of, start, wait_until

MARGIN_BYTES = 128 * 2**20  # for threads and small things, so that it is a large tensor that finds no room


def test_memory_that_ends_is_explained_and_the_run_goes_on_with_more(workplace: Workplace) -> None:
    """One training step of 256 sequences takes hundreds of megabytes more than everything before it.

    The limit is what the process uses when the last stage before the recovery begins, and a margin.
    """
    arguments = [
        *workplace.overrides("short_of_memory"),
        "prune.rounds=1",
        "prune.calibration_sequences=4",
        "data.sequence_length=128",
        "recover.batch_sequences=256",
        "recover.tokens=32768",
        "recover.objective=cross_entropy",
        "recover.validations=1",
        "engine.micro_batch_sequences=256",
    ]
    folder = workplace.folder / "short_of_memory"
    process = start(arguments, stderr=subprocess.PIPE)
    wait_until(lambda: "round_01/select" in record_of(folder).get("stages", {}), process)
    pid = psutil.Process(process.pid)
    limit = pid.memory_info().vms + MARGIN_BYTES
    pid.rlimit(resource.RLIMIT_AS, (limit, limit))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    last = errors.splitlines()[-3]  # then where the record is, and the command that goes on
    assert last.startswith("error: rank 0 failed in round_01/recover: out of memory. The largest consumer is ")
    assert "engine.micro_batch_sequences" in last
    assert record_of(folder)["error"] in last
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "round_01" / "recovered").exists()
    again = transact(arguments)
    assert again.returncode == 0, again.stderr
    assert record_of(folder)["state"] == "done"
