"""The estimate warns of dimensions that kernels dislike, and prune.target avoids them."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import pytest

from transact.geometry import Geometry
from transact.pruning.targets import shape_warnings
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


def estimate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = f"output_dir={folder}/run"
        monkeypatch.setattr(sys, "argv", ["transact", "+experiment=llama7b_50pct", "mode=estimate", place, *arguments])
        return main()


@pytest.mark.parametrize("target", ["any", "llama_cpp"])
def test_what_suits_the_target_gets_no_warning(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor do the other dimensions that the run will measure."""
    assert estimate(monkeypatch, f"prune.target={target}", "prune.split=auto") == 0
    assert "warning" not in capsys.readouterr().out


def test_the_estimate_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["prune.multiple.head_dim=2", "prune.multiple.intermediate_size=1", "prune.split=equal"]
    assert estimate(monkeypatch, *small) == 0
    output = capsys.readouterr().out
    assert "warning: intermediate_size" in output


def test_rows_that_32_does_not_divide_have_no_groups_either() -> None:
    (line,) = [line for line in change(intermediate_size=GOOD.intermediate_size + 8) if "stay f16" in line]
    assert line.endswith("and no groups of 128 in 4 bits (GPTQ, AWQ)")
