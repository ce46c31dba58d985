"""Every shipped experiment composes, passes its checks, and has an estimate that meets its request."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from transact.run import main

LARGE = {
    "llama7b_50pct": 0.5,
    "llama7b_70pct": 0.7,
    "llama7b_to_1p3b": None,
    "llama3_8b_50pct": 0.5,
    "llama3_8b_instruct_50pct": 0.5,
    "llama13b_50pct": 0.5,
    "llama70b_50pct": 0.5,
    "smollm2_50pct": 0.395,
}
EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["transact", *arguments])
    return main()


ABLATIONS = sorted(path.stem for path in EXPERIMENTS.glob("ablation_*.yaml"))


def test_the_list_is_complete() -> None:
    assert {path.stem for path in EXPERIMENTS.glob("*.yaml")} == {*LARGE, *ABLATIONS, "demo", "demo_parent"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_compose(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, f"+experiment={name}", "mode=estimate") == 0
    assert "head_dim" in capsys.readouterr().out


def test_parts_are_compared_at_equal_parameters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    removed = []
    for name in ("attention_only", "mlp_only", "both"):
        run(monkeypatch, f"+experiment=ablation_{name}", "mode=estimate")
        last = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("round 1"))
        removed.append(int(last.split()[5].replace(",", "")))
    assert max(removed) - min(removed) < 0.002 * max(removed)


@pytest.mark.parametrize("name", LARGE)
def test_estimate(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, f"+experiment={name}", "mode=estimate") == 0
    last = [line for line in capsys.readouterr().out.splitlines() if re.match(r"round \d ", line)][-1]
    removed = float(last.split()[6].rstrip("%")) / 100
    if LARGE[name] is None:
        assert "1,294,209,024" in last
    else:
        assert removed == pytest.approx(LARGE[name], abs=0.005)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"estimate.json", "estimate.txt"}


def test_the_request_of_the_laptop_tutorial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As it stands in the document, but for the model, whose dimensions are known without its weights."""
    page = (EXPERIMENTS.parents[1] / "docs" / "laptop.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^request=\((.*?)\)$", page, re.DOTALL | re.MULTILINE)
    request = [each for each in shlex.split(block) if not each.startswith("model.path=")]
    assert "+experiment=smollm2_50pct" in request and len(request) >= 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text('{"text": "A document."}\n')
    (tmp_path / "text" / "wikitext2_valid.txt").write_text("Another one.\n")
    assert run(monkeypatch, *request, "mode=estimate") == 0
    said = capsys.readouterr().out
    assert re.search(r"^round 1 .*81,[0-9]{3},[0-9]{3}", said, re.MULTILINE), said


def test_without_the_weights_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert run(monkeypatch, "+experiment=llama7b_50pct") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "meta-llama/Llama-2-7b-hf" in message
    assert not list(tmp_path.iterdir())
