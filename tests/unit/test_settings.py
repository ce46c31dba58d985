"""Every setting explains itself: in --help, and in docs/config, which is current."""

from __future__ import annotations

import sys

import pytest

from tests.support.commands import REPOSITORY
from transact.config.help import choices, pages, settings
from transact.run import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["transact", *arguments])
    return main()


def test_every_setting_is_described_and_null_explained() -> None:
    for each in settings():
        assert each.description.endswith("."), each.path
        if "null" in each.type:
            assert "null: " in each.description, each.path
    for choice in choices():
        assert choice.description, choice


def test_defaults_are_the_composed_ones() -> None:
    defaults = {each.path: each.default for each in settings()}
    assert defaults["recover.objective"] == "distillation"
    assert defaults["output_dir"] == "outputs/NAME"
    assert next(each for each in settings() if each.path == "name").is_required


def test_the_pages_are_current() -> None:
    """`make docs` writes them."""
    folder = REPOSITORY / "docs" / "config"
    assert {path.name: path.read_text() for path in folder.iterdir()} == pages()


def test_help_names_experiments_groups_and_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    first = capsys.readouterr().out
    assert "llama7b_50pct" in first
    assert "prune/method" in first
    assert max(map(len, first.splitlines())) <= 120
    assert run(monkeypatch, "--help", "prune.rounds") == 0
    assert capsys.readouterr().out.startswith("prune.rounds  (int; 1)\n    Turns of calibrate")
    assert run(monkeypatch, "--help", "prune") == 0
    assert "prune.method.ridge" in capsys.readouterr().out


def test_the_old_name_of_the_estimate_leads_to_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "name=x", "mode=plan") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "use mode=estimate" in told


def test_a_misspelt_name_is_met_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help", "prune.round") == 2
    assert "did you mean prune.rounds" in capsys.readouterr().err
    assert run(monkeypatch, "name=x", "recover.learning_rte=1") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "did you mean recover.learning_rate" in told
    assert run(monkeypatch, "name=x", "+ridge=1") == 2
    assert "did you mean prune.method.ridge" in capsys.readouterr().err
