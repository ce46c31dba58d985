"""One browser for all, and the folders whose pages it opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium, missing_browser
from tests.support.report_folders import LLAMA_7B, MadeUpRun, write_run
from transact.tracking.report.writing import write_pages


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = missing_browser()
    if reason is not None:
        pytest.skip(reason)
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: a large run, one at work, one that failed, one that has just begun, and a sweep."""
    folder = tmp_path_factory.mktemp("reports")
    runs = {
        "llama_7b": MadeUpRun(name="llama_7b", geometry=LLAMA_7B, rounds=8, done=8, steps=1500),
        "running": MadeUpRun(name="running", state="running", done=1, has_efficiency=False, has_tasks=False),
        "failed": MadeUpRun(
            name="failed",
            state="failed",
            done=1,
            error="rank 1 failed in round_02/recover: the disk is full (/outputs, 0.00 GiB free)",
            has_efficiency=False,
            has_tasks=False,
        ),
    }
    found = {name: write_pages(write_run(folder / name, run))[-1] for name, run in runs.items()}
    (folder / "begun").mkdir()
    (folder / "begun" / "run.json").write_text('{"state": "running", "stage": "round_00/evaluate"}', encoding="utf-8")
    found["begun"] = write_pages(folder / "begun")[-1]
    for method in ("default", "norms"):
        for fraction in (0.3, 0.5, 0.7):
            run = MadeUpRun(fraction=fraction, seed=len(method), steps=8)
            write_run(folder / "sweep" / f"prune_method={method},prune.remove_fraction={fraction}", run)
    found["sweep"] = write_pages(folder / "sweep")[-1]
    return found
