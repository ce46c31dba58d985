"""The estimate of a deeper model: slicing takes no more, and Gram matrices what they may (measured: bench-memory)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.configs import compose_config
from transact.engine.memory import MemoryEstimate, estimate_memory
from transact.geometry import Geometry

OF_135M = Geometry(
    hidden_size=576,
    num_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    tied_embeddings=True,
)
DEPTHS = (6, 30, 60)


def estimated(kind: str, layers: int, *overrides: str) -> MemoryEstimate:
    parent = replace(OF_135M, num_layers=layers)
    cut = replace(parent, head_dim=56, intermediate_size=576)
    return estimate_memory(
        cut if kind == "slice" else parent, compose_config(["name=depth", *overrides]), 1, kind, parent=parent
    )


@pytest.mark.parametrize("method", ["default", "parallel", "obs"])
def test_cutting_takes_the_same_at_any_depth(method: str) -> None:
    totals = {estimated("slice", layers, f"prune/method={method}").total() for layers in DEPTHS}
    assert len(totals) == 1 and totals.pop() > 0


def test_gram_matrices_take_what_they_may_and_no_more() -> None:
    """All that is free may be given to them, and then they grow with the layers until it is taken."""
    least = estimated("gram", 30, "prune.method.gram_gib=0.001").gram  # one layer at a time
    bounded = [estimated("gram", layers, "prune.method.gram_gib=0.1").gram for layers in DEPTHS]
    assert all(least < each <= 0.1 * 1024**3 + least for each in bounded)
    assert estimated("gram", 60, "prune.method.gram_gib=8").gram > 2 * max(bounded)
