"""A run on a mixture of texts: shares, resume, ranks, the record, the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, start, wait_until
from tests.support.wandb_files import series
from transact.data.mixture import adapted_weights
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
    ended = transact(mixed(workplace, "mixed"), ranks=2)
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


def test_adaptive_weights_follow_the_losses_and_survive_a_kill(workplace: Workplace) -> None:
    """Killed in its second round, a run goes on with the weights that it had, and ends as one that nobody killed."""
    overrides = ["data.train.adaptive=true", "recover.validations=4", "engine.checkpoint_every.tokens=512"]
    whole = transact(mixed(workplace, "whole", *overrides))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder, killed = workplace.folder / "whole", workplace.folder / "killed"
    process = start(mixed(workplace, "killed", *overrides))
    wait_until(lambda: any(each.name.startswith("round_02") for each in checkpoints(killed)), process)
    process.kill()
    process.wait()
    ended = transact(mixed(workplace, "killed", *overrides))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "goes on from checkpoint" in ended.stdout
    for name in ("round_01/mixture.json", "round_02/mixture.json"):
        assert (folder / name).read_bytes() == (killed / name).read_bytes()
    assert_same_export(folder, killed)
    first, second = (read_json(folder / f"round_0{number}/mixture.json") for number in (1, 2))
    assert first["reference"] == second["reference"] and second["changes"][: len(first["changes"])] == first["changes"]
    rows = read_metrics(folder / "metrics.jsonl")
    losses = {name: dict(series(rows, "tokens", f"data/validation_loss/{name}")) for name in ("short", "long")}
    before = [0.75, 0.25]  # by the names of the texts
    for (sequence, weights), tokens in zip(second["changes"], losses["short"], strict=True):
        assert sequence * 64 == tokens
        before = adapted_weights(before, [losses[name][tokens] for name in ("long", "short")], first["reference"])
        assert weights == pytest.approx(before)
