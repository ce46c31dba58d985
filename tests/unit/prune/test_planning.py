from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from transact.geometry import Geometry
from transact.prune.criteria import Scores
from transact.prune.planning import PrunePlan, best_indices, make_plan

SOURCE = Geometry(
    hidden_size=8,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=4,
    vocab_size=5,
    tied_embeddings=True,
)
TARGET = replace(SOURCE, head_dim=4, intermediate_size=2)


def scores() -> Scores:
    return Scores(
        rotary_pairs=torch.tensor([1.0, 3.0, 2.0]),
        value_dims=torch.tensor(
            [
                [[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]],
                [[0.0, 9, 0, 9, 9, 9], [1.0, 1, 1, 1, 1, 1]],
            ]
        ),
        channels=torch.tensor([[0.0, 2, 1, 3], [5.0, 5, 5, 5]]),
    )


def plan() -> PrunePlan:
    return make_plan(scores(), SOURCE, TARGET, parent=SOURCE, asked=0.4, criterion="activation_norm")


def test_plan_by_hand() -> None:
    made = plan()
    assert made.rotary_pairs == (1, 2)
    assert made.value_dims == (((2, 3, 4, 5), (0, 1, 2, 3)), ((1, 3, 4, 5), (0, 1, 2, 3)))
    assert made.channels == ((1, 3), (0, 1))
    # Of 1424 parameters go 2 head dims (2 * 192) and 2 channels (2 * 48).
    assert made.reached == pytest.approx(480 / 1424)


def test_ties_keep_the_lower_index_in_every_length() -> None:
    for length in (5, 100, 5000):
        assert best_indices(torch.ones(length), 4).tolist() == [0, 1, 2, 3]


def test_json_round_trip() -> None:
    made = plan()
    assert PrunePlan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_reached_counts_from_the_dense_parent() -> None:
    parent = replace(SOURCE, intermediate_size=8)
    later = make_plan(scores(), SOURCE, TARGET, parent=parent, asked=None, criterion="x")
    assert later.reached == pytest.approx((480 + 4 * 48) / (1424 + 4 * 48))


@pytest.mark.parametrize(
    "change",
    [
        {"rotary_pairs": (1,)},
        {"rotary_pairs": (2, 1)},
        {"rotary_pairs": (1, 1)},
        {"rotary_pairs": (-1, 1)},
        {"channels": ((1, 4), (0, 1))},
        {"channels": ((1, 3),)},
        {"value_dims": (((2, 3, 4, 5),), ((1, 3, 4, 5), (0, 1, 2, 3)))},
    ],
)
def test_refuses_an_inconsistent_plan(change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        replace(plan(), **change)


def test_refuses_scores_that_overflowed() -> None:
    broken = replace(scores(), channels=torch.full((2, 4), torch.inf))
    with pytest.raises(ValueError, match="scores of channels are not all finite"):
        make_plan(broken, SOURCE, TARGET, parent=SOURCE, asked=0.4, criterion="x")
