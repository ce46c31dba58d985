"""The memory that mode=estimate announces is what ranks allocate, within a tenth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.memory_model import TARGET, Case, measure
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
    (is_off,) = group.any(abs(row["error"]) >= TARGET)
    return measure(case, folder, group) if is_off else row


def test_the_estimate_is_within_a_tenth(tmp_path: Path) -> None:
    for row in run_on_ranks(2, _measured, tmp_path)[0][1:]:
        assert abs(row["error"]) < TARGET, row
