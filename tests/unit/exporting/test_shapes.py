"""The plan warns of dimensions that kernels dislike, and its presets avoid them."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import pytest

from transact.exporting.shapes import shape_warnings
from transact.geometry import Geometry
from transact.run import main

GOOD = Geometry(
    hidden_size=4096,
    num_layers=2,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=64,
    intermediate_size=5632,
    vocab_size=100,
    tied_embeddings=False,
)


def change(**values: Any) -> list[str]:
    from dataclasses import replace

    return shape_warnings(replace(GOOD, **values))


def test_good_dimensions_get_no_warning() -> None:
    assert shape_warnings(GOOD) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"head_dim": 52}, ["head_dim 52", "FlashAttention", "multiples of 8"]),
        ({"head_dim": 40}, ["head_dim 40", "32, 64, 80"]),
        ({"intermediate_size": 5650}, ["intermediate_size 5650", "multiple of 64"]),
        ({"intermediate_size": 5650}, ["q4_0", "5650"]),
        ({"intermediate_size": 5632 + 64}, ["K-quants", "256"]),
    ],
)
def test_names_dimension_and_reason(values: dict[str, int], words: list[str]) -> None:
    assert any(all(word in line for word in words) for line in change(**values))


def plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = f"output_dir={folder}/run"
        monkeypatch.setattr(sys, "argv", ["transact", "+experiment=llama7b_50pct", "mode=plan", place, *arguments])
        return main()


@pytest.mark.parametrize(
    ("preset", "head_dim", "channels"), [("cpu", 16, 64), ("cuda", 32, 128), ("llama_cpp_q4", 32, 256)]
)
def test_presets_give_such_dimensions_without_a_warning_of_their_own(
    preset: str,
    head_dim: int,
    channels: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan(monkeypatch, f"prune/multiple={preset}", "prune.split=equal") == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("round 8")).replace(",", "").split()
    assert int(row[3]) % head_dim == 0 and int(row[4]) % channels == 0
    if preset == "llama_cpp_q4":
        assert not any("llama.cpp" in line for line in lines)


def test_the_plan_warns_and_names_the_presets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["prune.multiple.head_dim=2", "prune.multiple.intermediate_size=1", "prune.split=equal"]
    assert plan(monkeypatch, *small) == 0
    output = capsys.readouterr().out
    assert "warning: intermediate_size" in output and "prune/multiple=cpu, cuda or llama_cpp_q4" in output


def test_the_plan_refuses_dimensions_that_a_quantisation_cannot_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["prune.multiple.head_dim=2", "prune.multiple.intermediate_size=1", "prune.split=equal"]
    assert plan(monkeypatch, "export.gguf=q4_0", *small) == 2
    assert "set prune.multiple.intermediate_size=32" in capsys.readouterr().err
