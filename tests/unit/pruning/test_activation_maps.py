"""What calibration saw and the selection kept, against values by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.support.selections import hand_selection
from transact.geometry import Geometry
from transact.pruning.activation_maps import activation_maps
from transact.pruning.statistics import ActivationStatistics

SOURCE = Geometry(
    hidden_size=8,
    num_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=4,
    vocab_size=10,
    tied_embeddings=False,
)
STATISTICS = ActivationStatistics(
    sums={
        "query": torch.tensor([[[4.0, 16.0], [36.0, 64.0]]], dtype=torch.float64),
        "key": torch.tensor([[[4.0, 12.0]]], dtype=torch.float64),
        "attention_output": torch.ones(1, 2, 4, dtype=torch.float64),
        "intermediate": torch.tensor([[12.0, 4.0, 0.0, 0.0]], dtype=torch.float64),
    },
    num_tokens=4,
)
SELECTION = hand_selection(SOURCE, [1], [[[0, 2]]], [[0, 1]])


def test_norms_are_roots_of_means_over_tokens() -> None:
    maps = activation_maps(STATISTICS, SELECTION)
    assert maps["query"].norms.tolist() == [[1, 2, 3, 4]]
    squares = torch.tensor([[3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(maps["intermediate"].norms.square(), squares)


def test_kept_units_are_marked_head_by_head() -> None:
    kept = {kind: each.kept for kind, each in activation_maps(STATISTICS, SELECTION).items()}
    assert kept["query"].tolist() == [[False, True, False, True]]  # pair 1 of both heads
    assert kept["key"].tolist() == [[False, True]]
    assert kept["attention_output"].tolist() == [[True, False, True, False] * 2]
    assert kept["intermediate"].tolist() == [[True, True, False, False]]


def test_whole_heads_that_go_are_marked_as_cut() -> None:
    source = Geometry(**(SOURCE.to_dict() | {"num_key_value_heads": 2}))
    statistics = replace(STATISTICS, sums={**STATISTICS.sums, "key": STATISTICS.sums["query"]})
    target = Geometry(**(source.to_dict() | {"num_attention_heads": 1, "num_key_value_heads": 1}))
    selection = hand_selection(
        source,
        [0, 1],
        [[[0, 1, 2, 3]]],
        [[0, 1, 2, 3]],
        query_heads=((1,),),
        key_value_heads=((1,),),
        query_key_dims=(((0, 1, 2, 3),),),
        target=target,
    )
    maps = activation_maps(statistics, selection)
    assert maps["query"].kept.tolist() == maps["key"].kept.tolist() == [[False, False, True, True]]
    assert maps["attention_output"].kept.tolist() == [[False] * 4 + [True] * 4]


def test_values_with_a_basis_of_their_own_are_not_marked() -> None:
    selection = hand_selection(SOURCE, [1], [[[0, 2]]], [[0, 1]], value_basis="svd")
    found = activation_maps(STATISTICS, selection)["attention_output"]
    assert found.kept is None and found.kept_energy() is None


def test_kept_energy_by_hand() -> None:
    maps = activation_maps(STATISTICS, SELECTION)
    assert torch.allclose(maps["query"].kept_energy(), torch.tensor([80 / 120], dtype=torch.float64))
    assert torch.allclose(maps["key"].kept_energy(), torch.tensor([0.75], dtype=torch.float64))
    assert maps["intermediate"].kept_energy().tolist() == [1.0]


def test_redundancy_by_hand() -> None:
    maps = activation_maps(STATISTICS, SELECTION)
    assert maps["attention_output"].redundancy().tolist() == [0.0]
    assert torch.allclose(maps["intermediate"].redundancy(), torch.tensor([1 - 16 / 10 / 4], dtype=torch.float64))
