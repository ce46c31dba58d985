"""The memory that mode=estimate announces is what ranks allocate, a tenth less at most and a quarter more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.memory_model import Case, is_off, measure
from tests.support.ranks import run_on_ranks
from transact.distributed.process import ProcessGroup, process_group

CASES = (
    Case(size="wide"),  # warms up what is made once
    Case(size="wide", dtype="bfloat16"),
    Case(size="deep", dtype="bfloat16", checkpointing=True, sequences=2, sequence_length=256),
    Case(size="vocabulary", zero_stage=1, objective="distillation"),
    Case(size="wide", stage="calibrate", sequences=2, sequence_length=256),
    Case(size="wide", stage="gram", method="default", sequences=2, sequence_length=256),
    Case(size="deep", stage="calibrate", method="taylor", sequences=2, sequence_length=256),
)


def _measured(folder: Path) -> list[dict[str, Any]]:
    with process_group("cpu", timeout_minutes=5) as group:
        return [_row(case, folder, group) for case in CASES]


def _row(case: Case, folder: Path, group: ProcessGroup) -> dict[str, Any]:
    """Measured once more where it is off: what lingers in gloo's threads is there by chance."""
    row = measure(case, folder, group, repetitions=1)
    (again,) = group.any(is_off(row["error"]))
    return measure(case, folder, group) if again else row


def test_the_estimate_is_a_tenth_too_low_at_most_and_a_quarter_too_high(tmp_path: Path) -> None:
    for row in run_on_ranks(2, _measured, tmp_path)[0][1:]:
        assert not is_off(row["error"]), row
