"""metrics.jsonl is read while it is written and after any accident, and thinning hides no spike."""

from __future__ import annotations

import json
from pathlib import Path

from transact.tracking.report.run_files import broken, even_sample, read_rows, series, thinned, tokens_at


def test_what_is_no_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"tokens": 1}\n\nnot json\n[1, 2]\n\xff\xfe\n{"tokens": 2}\n{"tokens": 3, "rec')
    assert read_rows(path) == [{"tokens": 1}, {"tokens": 2}]
    assert read_rows(tmp_path / "missing") == []


def test_a_repeated_step_counts_once_and_the_last_time() -> None:
    rows = [
        {"tokens": 10, "recover/loss": 3.0},
        {"tokens": 20, "recover/loss": 9.0},
        {"tokens": 20, "recover/loss": 2.0},
        {"tokens": 15, "recover/loss": "nan"},
        {"tokens": None, "recover/loss": 1.0},
        {"recover/loss": 1.0},
    ]
    assert series(rows, "recover/loss") == [(10.0, 3.0), (20.0, 2.0)]
    assert broken(rows, "recover/loss") == 1


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(place), 1.0) for place in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[12_345] = (12_345.0, -99.0)
    kept = thinned(points, 1000)
    assert len(kept) <= 1010
    assert {points[0], points[-1], points[54_321], points[12_345]} <= set(kept)
    assert kept == sorted(kept)


def test_even_sample_has_both_ends() -> None:
    assert even_sample(list(range(100)), 4) == [0, 33, 66, 99]
    assert even_sample([1, 2], 4) == [1, 2]


def test_tokens_at_a_moment() -> None:
    rows = [json.loads(line) for line in ('{"time": 1, "tokens": 5}', '{"time": 3, "tokens": 9}', '{"tokens": 70}')]
    assert [tokens_at(rows, time) for time in (0, 2, 3)] == [0, 5, 9]
