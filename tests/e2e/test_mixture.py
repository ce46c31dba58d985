"""A run on a mixture of texts: shares, resume, ranks, the record, the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from tests.support.wandb_files import series
from transact.files import read_json
from transact.runs.metrics import read_metrics


def mixed(workplace: Workplace, name: str, *overrides: str) -> list[str]:
    """A quarter of a short text that is used several times, the rest of another."""
    lines = workplace.train.read_text(encoding="utf-8").splitlines(keepends=True)
    short = workplace.folder / "short.txt"
    if not short.exists():
        short.write_text("".join(lines[: len(lines) // 10]), encoding="utf-8")
    others = [each for each in workplace.overrides(name) if not each.startswith(("data=", "data.train.files"))]
    sources = [
        f"+data.train.sources.short={{source: files, files: [{short}], weight: 1}}",
        f"+data.train.sources.long={{source: files, files: [{workplace.train}], weight: 3}}",
    ]
    return ["data=mixture", "data.evaluation.source=files", *sources, *others, *overrides]


@pytest.fixture(scope="module")
def run(workplace: Workplace) -> Path:
    ended = transact(mixed(workplace, "mixed"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return workplace.folder / "mixed"


def test_shares_are_the_weights(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    shares = series(rows, "tokens", "data/share/short")
    sequences = [tokens // 64 for tokens, _ in shares]
    assert sequences[0] == 8 and sequences[-1] == 8192 // 64
    for count, (_, share) in zip(sequences, shares, strict=True):
        assert abs(share - 0.25) * count < 1
    assert read_json(run / "run.json")["texts"].keys() == {
        "data.train.sources.short",
        "data.train.sources.long",
        "data.evaluation",
    }
    assert "Texts of the mixture" in (run / "report.html").read_text(encoding="utf-8")
