"""run.json holds one verdict on how an attempt ended, which names the rank that died, whoever writes it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from transact.errors import RankFailed
from transact.files import read_json
from transact.runs.run_folder import RunFolder
from transact.runs.verdict import RankEnd, end_attempt, ended_otherwise, name_the_dead

KILL, TERM = -signal.SIGKILL, -signal.SIGTERM


def begun(folder: Path, state: str = "running", error: str | None = None) -> float:
    run = RunFolder(folder)
    run.open(2)
    run.note(stage="round_01/recover")
    if state != "running":
        run.end(state, error)
    assert run.attempt is not None
    return run.attempt


def test_the_first_verdict_counts_whichever_rank_writes_it(tmp_path: Path) -> None:
    main, other = RunFolder(tmp_path), RunFolder(tmp_path)
    main.open(2)
    other.attempt = main.attempt
    assert other.end("failed", "rank 0 died")
    assert not main.end("failed", "rank 1 died")  # it was suspended, and took the others for dead
    assert read_json(tmp_path / "run.json")["error"] == "rank 0 died"
    with pytest.raises(RankFailed, match="rank 0 died"):
        main.note(texts={})  # nor does it go on


def test_a_later_attempt_gets_no_verdict_of_an_earlier_one(tmp_path: Path) -> None:
    first = begun(tmp_path)
    second = begun(tmp_path)
    assert not end_attempt(tmp_path, first, "failed", "rank 1 died")
    assert ended_otherwise(tmp_path, second) is None
    assert not end_attempt(tmp_path / "nothing", first, "failed", "x")
    assert not end_attempt(tmp_path, None, "failed", "x")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("codes", "error", "said"),
    [
        ((KILL, 1), "rank {rank} died in round_01/recover (Connection reset)", "killed by SIGKILL"),
        ((-signal.SIGSEGV, 1), "rank {rank} died in round_01/recover: no sign of life for 20 s", "killed by SIGSEGV"),
        ((KILL, KILL), None, "killed by SIGKILL"),
        ((3, 1), None, "exit code 3"),
    ],
)
def test_the_parent_names_the_rank_that_died_first(
    tmp_path: Path, rank: int, codes: tuple[int, int], error: str | None, said: str
) -> None:
    begun(tmp_path, *(() if error is None else ("failed", error.format(rank=rank))))
    ends = [RankEnd(rank=rank, code=codes[0]), RankEnd(rank=1 - rank, code=codes[1])]
    name_the_dead(tmp_path, time.time() - 60, ends)
    record = read_json(tmp_path / "run.json")
    assert record["state"] == "failed"
    assert record["error"].startswith(f"rank {rank} died in round_01/recover: {said}")


@pytest.mark.parametrize(
    ("state", "error", "ends"),
    [
        ("failed", "rank 1 failed in round_01/recover: OSError", [RankEnd(rank=0, code=KILL)]),  # it knows why itself
        ("failed", "rank 0 died in round_01/recover: no sign of life", [RankEnd(rank=0, code=KILL, by_us=True)]),
        ("stopped", "stopped by SIGINT", [RankEnd(rank=0, code=1)]),
        ("diverged", "round 1, step 5", [RankEnd(rank=0, code=1)]),
        ("done", None, [RankEnd(rank=0, code=0), RankEnd(rank=1, code=KILL)]),
    ],
)
def test_what_is_known_better_stays(tmp_path: Path, state: str, error: str | None, ends: list[RankEnd]) -> None:
    begun(tmp_path, state, error)
    name_the_dead(tmp_path, time.time() - 60, ends)
    record = read_json(tmp_path / "run.json")
    assert (record["state"], record["error"]) == (state, error)


def test_asked_before_the_ranks_could_listen_is_stopped_but_a_kill_is_a_kill(tmp_path: Path) -> None:
    for code, asked, state in (
        (TERM, "SIGTERM", "stopped"),
        (-signal.SIGINT, "SIGINT", "stopped"),
        (-signal.SIGHUP, "SIGHUP", "stopped"),
        (KILL, "SIGTERM", "failed"),
    ):
        begun(tmp_path)
        name_the_dead(tmp_path, time.time() - 60, [RankEnd(rank=0, code=code)], asked)
        record = read_json(tmp_path / "run.json")
        assert record["state"] == state and (record["error"] == f"stopped by {asked}") == (state == "stopped")


def test_an_earlier_attempt_and_no_record_are_let_be(tmp_path: Path) -> None:
    begun(tmp_path)
    for folder in (tmp_path, tmp_path / "nothing"):
        name_the_dead(folder, time.time() + 60, [RankEnd(rank=0, code=KILL)])
    assert read_json(tmp_path / "run.json")["state"] == "running"
    assert os.listdir(tmp_path) == ["run.json"]  # and no lock is left
