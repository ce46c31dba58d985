"""Scores of two layers, two query heads, one key-value head, computed by hand."""

from __future__ import annotations

import torch

from transact.geometry import Geometry
from transact.prune.criteria import CRITERIA
from transact.prune.statistics import ActivationStatistics

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


def test_pairs_weigh_each_layer_alike() -> None:
    scores = CRITERIA["activation_norm"](statistics(), GEOMETRY)
    # Layer 0: pair 0 has 1*1 + 3*1 = 4, pair 1 has 2*4 + 0*4 = 8: shares 1/3 and 2/3.
    # Layer 1: 100*3 + 100*3 = 600 and 100*2 + 0 = 200: shares 3/4 and 1/4, however large.
    torch.testing.assert_close(scores.rotary_pairs, torch.tensor([1 / 3 + 3 / 4, 2 / 3 + 1 / 4], dtype=torch.float64))


def test_value_dims_join_the_query_heads_of_a_group() -> None:
    scores = CRITERIA["activation_norm"](statistics(), GEOMETRY)
    expected = torch.tensor([[[5, 2, 1, 1]], [[0, 13, 10, 2**0.5]]], dtype=torch.float64)
    torch.testing.assert_close(scores.value_dims, expected)


def test_channels_are_norms() -> None:
    scores = CRITERIA["activation_norm"](statistics(), GEOMETRY)
    assert scores.channels.tolist() == [[7, 1], [2, 9]]


def test_silent_layer_gives_no_nan() -> None:
    scores = CRITERIA["activation_norm"](ActivationStatistics.zeros(GEOMETRY), GEOMETRY)
    assert scores.rotary_pairs.tolist() == [0, 0]
