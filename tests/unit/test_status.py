"""What `python -m transact status` makes of the files of runs. Those of jobs on SLURM: tests/cluster."""

from __future__ import annotations

import fcntl
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from transact.launch.status import main
from transact.runs.metrics import MetricsLog
from transact.runs.run_record import LAYOUT


def write_run(folder: Path, rows: list[dict[str, Any]], **record: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("recover:\n  tokens: 10000\n")
    (folder / "run.json").write_text(
        json.dumps({"layout": LAYOUT, "restarts": 0, "stages": {}, "error": None} | record)
    )
    log = MetricsLog(folder / "metrics.jsonl")
    for number, row in enumerate(rows, start=1):
        log.append(row, step=number, tokens=1000 * number, round=1)
    log.close()


def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> list[list[str]]:
    monkeypatch.setattr(sys, "argv", ["status", str(folder)])
    assert main() == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_run_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"perf/tokens_per_s": speed, "recover/loss": 2.0} for speed in (1.0, 50.0, 50.0, 50.0)]
    rows[1]["eval/perplexity_sliced"] = 7.5
    rows[2]["recover/validation_perplexity"] = 6.5  # of another text
    counts = {"timeouts": 2, "preemptions": 0, "failures": 1, "last": "time limit (SIGUSR2)"}
    write_run(tmp_path / "run", rows, state="running", stage="round_02/recover", restarts=3, interruptions=counts)
    _, row, error = status(monkeypatch, capsys, tmp_path / "run")
    # 4,000 of 10,000 tokens at 50 a second: two minutes are left.
    assert row[:6] == ["run", "running", "round_02/recover", "2", "4,000/10,000", "7.50"]
    assert row[6:11] == ["(round", "1,", "sliced)", "50", "00:02:00"]
    assert row[11:] == ["3", "(2", "timeouts,", "1", "failures)", "-"]
    assert error == ["run:", "time", "limit", "(SIGUSR2)"]


def test_more_tokens_than_were_asked_for_leave_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_run(tmp_path / "run", [{"perf/tokens_per_s": 50.0}] * 12, state="running", stage="round_02/recover")
    _, row = status(monkeypatch, capsys, tmp_path / "run")
    assert row[4:8] == ["12,000/10,000", "-", "50", "00:00:00"]


def test_a_run_that_was_killed_is_told_from_one_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its lock died with it."""
    write_run(tmp_path / "run", [], state="running", stage="round_01/recover")
    lock = tmp_path / "run" / "run.lock"
    lock.write_text(json.dumps({"host": socket.gethostname()}))
    with lock.open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)  # as every rank holds it
        assert status(monkeypatch, capsys, tmp_path / "run")[1][1] == "running"
    assert status(monkeypatch, capsys, tmp_path / "run")[1][1] == "died"
    lock.write_text(json.dumps({"host": "another_machine"}))  # whose locks may not be seen from here
    assert status(monkeypatch, capsys, tmp_path / "run")[1][1] == "running"


def test_a_sweep_has_a_row_for_each_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_run(tmp_path / "a", [{"eval/perplexity_sliced": 9.0, "eval/perplexity_recovered": 8.0}], state="done")
    write_run(tmp_path / "b", [], state="failed", stage="round_01/slice", error="the disk is full")
    (tmp_path / "shared").mkdir()
    _, done, failed, counts, error = status(monkeypatch, capsys, tmp_path)
    assert done[:2] == ["a", "done"] and "8.00" in done
    assert failed[:3] == ["b", "failed", "round_01/slice"]
    assert " ".join(counts) == "2 runs: 1 done, 1 failed"
    assert error == ["b:", "the", "disk", "is", "full"]


def test_a_folder_without_runs_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["status", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err == (
        f"error: {str(tmp_path)!r} holds no run: neither run.json nor job.json is in it or right below it\n"
    )


TEXTS = {
    "held.txt": {"source": "files", "files": ["/data/held.txt"]},
    "a.txt, b.txt and 2 more": {"source": "files", "files": [f"/data/{name}.txt" for name in "abcd"]},
    "org/books, split test": {"source": "hub", "hub_id": "org/books", "split": "test"},
    "the library of this Python": {"source": "python_stdlib"},
}
FIGURES = {
    "8.00 (round 1, recovered)": [
        {"eval/perplexity_dense": 5.0},
        {"eval/perplexity_sliced": 9.0, "eval/perplexity_recovered": 8.0},
    ],
    "9.00 (round 1, sliced)": [
        {"eval/perplexity_dense": 5.0},
        {"eval/perplexity_sliced": 9.0},
        {"recover/validation_perplexity": 7.0},
    ],
    "5.00 (the dense model)": [{"eval/perplexity_dense": 5.0}, {"recover/perplexity": 3.0}],
}


@pytest.mark.parametrize("shown", FIGURES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_figure_says_whose_it_is_and_of_which_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, shown: str, text: str
) -> None:
    write_run(tmp_path / "run", FIGURES[shown], state="stopped", stage="round_01/recover", error="stopped by SIGTERM")
    config = {"recover": {"tokens": 10000}, "data": {"evaluation": TEXTS[text]}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    lines = [" ".join(line) for line in status(monkeypatch, capsys, tmp_path / "run")]
    assert shown in lines[1]
    assert lines[2:] == [f"perplexity: on held-out text, data.evaluation ({text})", "run: stopped by SIGTERM"]
