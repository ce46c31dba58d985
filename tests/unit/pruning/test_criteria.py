"""Scores of two layers, two query heads, one key-value head, computed by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from transact.config.help import field_descriptions
from transact.config.pruning import MethodConfig
from transact.geometry import Geometry
from transact.pruning.criteria import Criteria, Evidence, Scores, choices, head_scores, magnitude_scores
from transact.pruning.statistics import ActivationStatistics
from transact.pruning.weights import LayerWeights
from transact.stages.preflight import check_criteria

NORMS = MethodConfig(pair_score="norm_product", values="norm", channels="norm", pair_gains="none")
RANDOM = MethodConfig(pair_score="random", values="random", channels="random")

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

    sums = {
        "query": squares([[[1, 2], [3, 0]], [[100, 100], [100, 0]]]),
        "key": squares([[[1, 4]], [[3, 2]]]),
        "attention_output": squares([[[3, 0, 1, 1], [4, 2, 0, 0]], [[0, 5, 6, 1], [0, 12, 8, 1]]]),
        "intermediate": squares([[7, 1], [2, 9]]),
    }
    return ActivationStatistics(sums=sums, num_tokens=10)


def evidence(**changes: Any) -> Evidence:
    return Evidence(geometry=GEOMETRY, statistics=statistics(), **changes)


def scores(**names: str) -> Scores:
    return Criteria.of(replace(NORMS, **names)).score(evidence())


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
    first, same, other = (Criteria.of(RANDOM).score(evidence(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.channels, same.channels) and not torch.equal(first.channels, other.channels)
    assert first.pairs.shape == (2, 1, 2) and first.values.shape == (2, 1, 4)


def test_a_statistic_that_was_not_collected_is_no_score() -> None:
    with pytest.raises(AssertionError, match="logit_variance was not collected"):
        scores(pair_score="logit_variance")


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


def test_a_run_sums_what_its_criteria_read_and_nothing_else() -> None:
    def names(geometry: Geometry = GEOMETRY, **choice: str) -> list[str]:
        return [each.name for each in Criteria.of(replace(NORMS, **choice)).statistics(geometry)]

    squares = ["query", "key", "attention_output", "intermediate"]
    assert names() == names(values="svd", channels="obs") == names(pair_score="magnitude", values="random") == squares
    assert names(pair_score="logit_variance") == [*squares, "logit_variance"]
    assert names(values="taylor") == [*squares, "taylor_values"]
    assert names(pair_gains="auto") == names(pair_gains="attention") == [*squares, "part_covariance"]
    assert names(replace(GEOMETRY, query_key_norm=True), pair_gains="auto") == [*squares, "query_share", "key_share"]
    assert names(attention="heads", pair_gains="auto") == squares


def test_gradients_and_weights_are_looked_at_where_a_criterion_does() -> None:
    for choice, gradients, weights in (
        ({"channels": "taylor"}, True, False),
        ({"values": "magnitude"}, False, True),
        ({"pair_score": "logit_variance", "channels": "obs"}, False, False),
    ):
        criteria = Criteria.of(replace(NORMS, **choice))
        assert (criteria.needs_gradients, criteria.looks_at_weights) == (gradients, weights)


@pytest.mark.parametrize("setting", choices())
def test_every_name_in_the_tables_is_a_criterion_and_no_other(setting: str) -> None:
    """What --help says of the setting names criteria that there are."""
    for name in choices()[setting]:
        check_criteria(replace(NORMS, **{setting: name}))
    with pytest.raises(ValueError, match=rf"prune\.method\.{setting}='nonsense'.*{', '.join(choices()[setting])}"):
        check_criteria(replace(NORMS, **{setting: "nonsense"}))
    described = re.findall(r'"(\w+)"', field_descriptions(MethodConfig)[setting])
    assert described and set(described) <= set(choices()[setting])
