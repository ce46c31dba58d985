"""What is exported in which dtype, and when it is not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from transact.files import write_json
from transact.stages.export import TOLERANCE, check_difference, export_dtype


@pytest.mark.parametrize("difference", [2 * TOLERANCE, math.inf, math.nan])
def test_a_model_that_computes_something_else_is_not_published(difference: float) -> None:
    with pytest.raises(RuntimeError, match="the logits of transformers differ by"):
        check_difference(difference, "transformers")


def test_rounding_is_allowed() -> None:
    check_difference(0.5 * TOLERANCE, "transformers")


@pytest.mark.parametrize(
    ("asked", "stored", "given"),
    [
        ("parent", {"dtype": "bfloat16"}, "bfloat16"),
        ("parent", {"torch_dtype": "float16"}, "bfloat16"),
        ("parent", {}, "float32"),
        ("float32", {"dtype": "bfloat16"}, "float32"),
    ],
)
def test_the_parents_dtype_is_kept(asked: str, stored: dict[str, str], given: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", stored)
    assert export_dtype(asked, tmp_path) == given
