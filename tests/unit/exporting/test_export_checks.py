"""What is exported in which dtype, and when it is not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support.tiny import write_model
from transact.errors import Failure
from transact.files import write_json
from transact.stages.export import TOLERANCE, check_difference, check_memory, export_dtype, logit_difference


@pytest.mark.parametrize("difference", [2 * TOLERANCE, math.inf, math.nan])
def test_a_model_that_computes_something_else_is_not_published(difference: float) -> None:
    with pytest.raises(RuntimeError, match="the logits of transformers differ by"):
        check_difference(difference, "transformers")


def test_rounding_is_allowed() -> None:
    check_difference(0.5 * TOLERANCE, "transformers")


def to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round float32 to the 10 bits of mantissa that a tensor core reads of it."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize("outlier", [1.0, 30.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_products_in_tf32_are_seen_and_those_in_float32_are_not(size: float, outlier: float) -> None:
    """Whatever the logits' size, and although one of them may be far larger than the others."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 256, generator=generator)
    head = size * torch.randn(512, 256, generator=generator)
    head[7] *= outlier
    exact = (hidden.double() @ head.double().T).float()
    check_difference(logit_difference(hidden @ head.T, exact), "transformers")
    with pytest.raises(RuntimeError, match="root mean square"):
        check_difference(logit_difference(to_tf32(hidden) @ to_tf32(head).T, exact), "transformers")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_seen(broken: float) -> None:
    with pytest.raises(RuntimeError):
        check_difference(logit_difference(torch.tensor([1.0, broken]), torch.ones(2)), "transformers")


def test_logits_that_are_all_zero_equal_themselves_only() -> None:
    assert logit_difference(torch.zeros(3), torch.zeros(3)) == 0
    assert logit_difference(torch.full((3,), 1e-6), torch.zeros(3)) > TOLERANCE


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


def test_a_file_for_executorch_is_not_begun_without_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    check_memory(folder)
    monkeypatch.setattr("transact.stages.export.free_bytes", lambda device: 1000)
    with pytest.raises(Failure, match=r"export\.executorch needs about .* the export is complete in"):
        check_memory(folder)
