"""Indices of a selection for two query heads of six dims that share one key-value head."""

from __future__ import annotations

import math
from dataclasses import replace

from tests.support.selections import hand_selection
from transact.geometry import Geometry
from transact.pruning import slicing

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
SELECTION = hand_selection(SOURCE, (0, 2), (((0, 1, 2, 5),), ((1, 2, 3, 4),)), ((0, 3), (1, 2)))


def test_rotary_rows_take_both_halves_of_a_pair() -> None:
    assert slicing.query_rows(SELECTION, 0).tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert slicing.key_rows(SELECTION, 1).tolist() == [0, 2, 3, 5]


def test_output_columns_repeat_the_dims_of_the_group() -> None:
    assert slicing.value_rows(SELECTION, 0).tolist() == [0, 1, 2, 5]
    assert slicing.output_columns(SELECTION, 0).tolist() == [0, 1, 2, 5, 6, 7, 8, 11]
    assert slicing.output_columns(SELECTION, 1).tolist() == [1, 2, 3, 4, 7, 8, 9, 10]


def test_two_key_value_heads_keep_their_own_dims() -> None:
    source = replace(SOURCE, num_attention_heads=4, num_key_value_heads=2)
    selection = hand_selection(source, (0, 2), (((0, 1, 2, 5), (1, 2, 3, 4)),) * 2, ((0, 3), (1, 2)))
    assert slicing.value_rows(selection, 0).tolist() == [0, 1, 2, 5, 7, 8, 9, 10]
    assert slicing.output_columns(selection, 0).view(4, 4).tolist() == [
        [0, 1, 2, 5],
        [6, 7, 8, 11],
        [13, 14, 15, 16],
        [19, 20, 21, 22],
    ]


def test_channels_and_scale() -> None:
    assert slicing.channel_indices(SELECTION, 1).tolist() == [1, 2]
    assert slicing.query_scale(SELECTION) == math.sqrt(4 / 6)


def test_kept_heads_keep_their_own_rows() -> None:
    """Four query heads in two groups; group 1 stays, with its second query head."""
    source = replace(SOURCE, num_layers=1, num_attention_heads=4, num_key_value_heads=2)
    whole = tuple(range(6))
    selection = hand_selection(
        source,
        (0, 1, 2),
        ((whole,),),
        ((0, 3),),
        target=replace(source, num_attention_heads=1, num_key_value_heads=1, intermediate_size=2),
        query_heads=((3,),),
        key_value_heads=((1,),),
        query_key_dims=((whole,),),
    )
    assert slicing.query_rows(selection, 0).tolist() == list(range(18, 24))
    assert slicing.key_rows(selection, 0).tolist() == slicing.value_rows(selection, 0).tolist() == list(range(6, 12))
    assert slicing.output_columns(selection, 0).tolist() == list(range(18, 24))
    assert slicing.query_scale(selection) == 1.0


def test_recreated_frequencies_leave_the_temperature_alone() -> None:
    dims = (((0, 1, 2, 5),), ((1, 2, 3, 4),))
    selection = hand_selection(SOURCE, (0, 2), dims, ((0, 3), (1, 2)), rotary="recreated", query_key_dims=dims)
    assert slicing.query_scale(selection) == 1.0
    assert slicing.query_rows(selection, 1).tolist() == slicing.output_columns(selection, 1).tolist()
