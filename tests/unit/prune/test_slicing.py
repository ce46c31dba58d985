"""Indices of a plan for two query heads of six dims that share one key-value head."""

from __future__ import annotations

import math
from dataclasses import replace

from transact.geometry import Geometry
from transact.prune import slicing
from transact.prune.planning import PrunePlan

SOURCE = Geometry(
    hidden_size=8,
    num_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=6,
    intermediate_size=4,
    vocab_size=5,
    tied_embeddings=True,
)
PLAN = PrunePlan(
    rotary_pairs=(0, 2),
    value_dims=(((0, 1, 2, 5),), ((1, 2, 3, 4),)),
    channels=((0, 3), (1, 2)),
    source=SOURCE,
    target=replace(SOURCE, head_dim=4, intermediate_size=2),
    asked=0.3,
    reached=0.3,
    criterion="activation_norm",
)


def test_rotary_rows_take_both_halves_of_a_pair() -> None:
    assert slicing.query_rows(PLAN).tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert slicing.key_rows(PLAN).tolist() == [0, 2, 3, 5]


def test_output_columns_repeat_the_dims_of_the_group() -> None:
    assert slicing.value_rows(PLAN, 0).tolist() == [0, 1, 2, 5]
    assert slicing.output_columns(PLAN, 0).tolist() == [0, 1, 2, 5, 6, 7, 8, 11]
    assert slicing.output_columns(PLAN, 1).tolist() == [1, 2, 3, 4, 7, 8, 9, 10]


def test_two_key_value_heads_keep_their_own_dims() -> None:
    source = replace(SOURCE, num_attention_heads=4, num_key_value_heads=2)
    plan = replace(
        PLAN,
        source=source,
        target=replace(source, head_dim=4, intermediate_size=2),
        value_dims=(((0, 1, 2, 5), (1, 2, 3, 4)),) * 2,
    )
    assert slicing.value_rows(plan, 0).tolist() == [0, 1, 2, 5, 7, 8, 9, 10]
    assert slicing.output_columns(plan, 0).view(4, 4).tolist() == [
        [0, 1, 2, 5],
        [6, 7, 8, 11],
        [13, 14, 15, 16],
        [19, 20, 21, 22],
    ]


def test_channels_and_scale() -> None:
    assert slicing.channel_indices(PLAN, 1).tolist() == [1, 2]
    assert slicing.query_scale(PLAN) == math.sqrt(4 / 6)
