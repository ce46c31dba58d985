"""The log of metrics survives kills, restarts and figures that JSON cannot write."""

import json
import math
from pathlib import Path

import pytest

from transact.runs.metrics import MetricsLog, read_metrics


def append_loss(log: MetricsLog, step: int, loss: float = 3.0) -> None:
    log.append({"recover/loss": loss}, step=step, tokens=1024 * step, round=1)


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_a_line_carries_its_axes_and_metrics(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    append_loss(MetricsLog(path), step=2, loss=2.5)  # not closed: a line is out at once

    (record,) = read_metrics(path)

    assert list(record) == ["time", "step", "tokens", "round", "recover/loss"]
    assert record["time"] > 1.7e9
    assert record["tokens"] == 2048
    assert record["recover/loss"] == 2.5


@pytest.mark.parametrize(("value", "written"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_non_finite_values_are_strings_on_disk(tmp_path: Path, value: float, written: str) -> None:
    path = tmp_path / "metrics.jsonl"
    append_loss(MetricsLog(path), step=1, loss=value)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["recover/loss"] == written
    assert repr(read_metrics(path)[0]["recover/loss"]) == repr(value)


def test_truncate_drops_an_unfinished_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    append_loss(log, step=1)
    position = log.position()
    append_loss(log, step=2)
    log.close()

    restarted = MetricsLog(path)
    restarted.truncate(position)
    assert restarted.position() == position == path.stat().st_size
    append_loss(restarted, step=3)

    assert steps(path) == [1, 3]


def test_truncate_inside_a_line_drops_the_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    append_loss(log, step=1)
    position = log.position()
    append_loss(log, step=2)

    log.truncate(position + 5)

    assert log.position() == position


def test_truncate_never_lengthens_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    append_loss(log, step=1)
    position = log.position()

    log.truncate(position + 1000)

    assert log.position() == position
    with pytest.raises(ValueError, match="0 or more"):
        log.truncate(-1)


@pytest.mark.parametrize("torn_length", [1, 30, 200_000])
def test_a_torn_last_line_is_skipped_then_dropped(tmp_path: Path, torn_length: int) -> None:
    path = tmp_path / "metrics.jsonl"
    append_loss(MetricsLog(path), step=1)
    with path.open("a") as file:
        file.write('{"time": 1' + "1" * torn_length)

    assert steps(path) == [1]
    append_loss(MetricsLog(path), step=2)
    assert steps(path) == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_a_metric_cannot_replace_an_axis(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="tokens"):
        log.append({"tokens": 3}, step=1, tokens=2, round=1)
    assert log.position() == 0
