"""Scores of two layers, two query heads, one key-value head, computed by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.support.commands import REPOSITORY
from transact.geometry import Geometry
from transact.pruning.criteria import CHANNEL_CRITERIA, Evidence, Scores, head_scores, magnitude_scores, score
from transact.pruning.statistics import ActivationStatistics
from transact.pruning.weights import LayerWeights

RANDOM = {"pairs": "random", "values": "random", "channels": "random"}

GEOMETRY = Geometry(
    hidden_size=8,
    num_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=2,
    vocab_size=5,
    tied_embeddings=True,
)


def statistics() -> ActivationStatistics:
    def squares(norms: list[object]) -> torch.Tensor:
        return torch.tensor(norms, dtype=torch.float64).square()

    return ActivationStatistics(
        query=squares([[[1, 2], [3, 0]], [[100, 100], [100, 0]]]),
        key=squares([[[1, 4]], [[3, 2]]]),
        attention_output=squares([[[3, 0, 1, 1], [4, 2, 0, 0]], [[0, 5, 6, 1], [0, 12, 8, 1]]]),
        intermediate=squares([[7, 1], [2, 9]]),
        num_tokens=10,
    )


def evidence(**changes: Any) -> Evidence:
    return Evidence(geometry=GEOMETRY, statistics=statistics(), **changes)


def scores(**names: str) -> Scores:
    return score(evidence(), **({"pairs": "norm_product", "values": "norm", "channels": "norm"} | names))


def test_norm_products_add_up_over_query_heads() -> None:
    # Layer 0: pair 0 has 1*1 + 3*1, pair 1 has 2*4 + 0*4. Layer 1: 100*3 + 100*3 and 100*2 + 0.
    assert scores().pairs.tolist() == [[[4, 8]], [[600, 200]]]


def test_value_dims_join_the_query_heads_of_a_group() -> None:
    expected = torch.tensor([[[5, 2, 1, 1]], [[0, 13, 10, 2**0.5]]], dtype=torch.float64)
    torch.testing.assert_close(scores().values, expected)


def test_channels_are_norms() -> None:
    assert scores().channels.tolist() == [[7, 1], [2, 9]]


def test_choices_without_scores_fall_back_on_norms() -> None:
    """A basis from data, or OBS, chooses by itself."""
    assert scores(values="svd", channels="obs").channels.tolist() == scores().channels.tolist()


def test_random_scores_depend_on_the_seed_alone() -> None:
    first, same, other = (score(evidence(seed=seed), **RANDOM) for seed in (1, 1, 2))
    assert torch.equal(first.channels, same.channels) and not torch.equal(first.channels, other.channels)
    assert first.pairs.shape == (2, 1, 2) and first.values.shape == (2, 1, 4)


def test_a_statistic_that_was_not_collected_is_no_score() -> None:
    with pytest.raises(AssertionError, match="logit_variance was not collected"):
        scores(pairs="logit_variance")


def test_heads_by_hand() -> None:
    """Mean plus 10 / head_dim times the maximum, as TransAct's code."""
    norms = torch.tensor([[[3.0, 0, 1, 0], [1, 1, 1, 1]]])
    assert head_scores(norms, GEOMETRY).tolist() == [[1 + 2.5 * 3, 1 + 2.5 * 1]]


def test_magnitude_by_hand() -> None:
    """Only one entry of every matrix counts, so the products of norms are products of entries."""

    def one(rows: int, columns: int, row: int, column: int, value: float) -> torch.Tensor:
        matrix = torch.zeros(rows, columns)
        matrix[row, column] = value
        return matrix

    weights = LayerWeights(
        query=one(8, 8, 7, 0, 2.0),  # head 1, dim 3: pair 1
        key=one(4, 8, 1, 5, 3.0),  # dim 1: pair 1
        value=one(4, 8, 2, 0, 5.0),
        output=one(8, 8, 0, 6, 7.0),  # head 1, dim 2
        gate=one(2, 8, 1, 0, 2.0),
        up=one(2, 8, 1, 1, 3.0),
        down=one(8, 2, 4, 1, 4.0),
    )
    found = magnitude_scores(weights, GEOMETRY)
    assert found.pairs.tolist() == [[0, 6]]
    assert found.values.tolist() == [[0, 0, 35, 0]]
    assert found.channels.tolist() == [0, 24]


def test_the_documented_example_is_a_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/extending.md: shares of the squares 49 and 1, 4 and 81."""
    document = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- criterion -->\n```python\n(.*?)```", document, re.DOTALL)
    monkeypatch.setitem(CHANNEL_CRITERIA, "energy_share", CHANNEL_CRITERIA["norm"])  # undone at the end
    exec(block, {})
    expected = torch.tensor([[49 / 50, 1 / 50], [4 / 85, 81 / 85]], dtype=torch.float64)
    torch.testing.assert_close(scores(channels="energy_share").channels, expected)
