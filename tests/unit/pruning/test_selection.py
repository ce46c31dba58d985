from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from transact.geometry import Geometry
from transact.pruning.criteria import Scores
from transact.pruning.selection import Chosen, Goal, Rules, Selection, best_heads, best_indices, make_selection

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
        # Summed over layers and heads: 1, 3 and 2.
        pairs=torch.tensor([[[0.5, 0.0, 2.0], [0.5, 1.0, 0.0]], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]]),
        values=torch.tensor(
            [
                [[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]],
                [[0.0, 9, 0, 9, 9, 9], [1.0, 1, 1, 1, 1, 1]],
            ]
        ),
        channels=torch.tensor([[0.0, 2, 1, 3], [5.0, 5, 5, 5]]),
    )


GOAL = Goal(target=TARGET, parent=SOURCE)


def selection(goal: Goal = GOAL, **rules: Any) -> Selection:
    return make_selection(scores(), SOURCE, goal, Rules(**rules))


def test_selection_by_hand() -> None:
    made = selection()
    assert made.query_key_dims == (((1, 2, 4, 5),) * 2,) * 2
    assert made.rotary_pairs(1, 0) == (1, 2)
    assert made.value_dims == (((2, 3, 4, 5), (0, 1, 2, 3)), ((1, 3, 4, 5), (0, 1, 2, 3)))
    assert made.channels == ((1, 3), (0, 1))
    # Of 1424 parameters go 2 head dims (2 * 192) and 2 channels (2 * 48).
    assert made.reached == pytest.approx(480 / 1424)


def test_ties_keep_the_lower_index_in_every_length() -> None:
    for length in (5, 100, 5000):
        assert best_indices(torch.ones(length), 4).tolist() == [0, 1, 2, 3]


def test_json_round_trip() -> None:
    made = selection()
    assert Selection.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_reached_counts_from_the_dense_parent() -> None:
    parent = replace(SOURCE, intermediate_size=8)
    later = selection(Goal(target=TARGET, parent=parent))
    assert later.reached == pytest.approx((480 + 4 * 48) / (1424 + 4 * 48))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("layer", [[(0, 2), (0, 2)], [(0, 1), (0, 1)]]),  # sums: 1, 1, 2 and 0, 2, 0
        ("head", [[(0, 2), (0, 1)], [(0, 1), (0, 1)]]),
    ],
)
def test_scope_decides_who_shares_a_set_of_pairs(scope: str, expected: list[Any]) -> None:
    made = selection(pair_scope=scope)
    assert [[made.rotary_pairs(layer, head) for head in range(2)] for layer in range(2)] == expected


def test_shared_dims_follow_the_values() -> None:
    made = selection(unit="shared_dims")
    assert made.query_key_dims == made.value_dims and made.rotary == "recreated"


def test_whole_heads_by_hand() -> None:
    """Layer 0: group 0 has 1 + 4, group 1 has 3 + 3. Layer 1: 9 + 0 against 5 + 2."""
    head_scores = torch.tensor([[1.0, 4.0, 3.0, 3.0], [9.0, 0.0, 5.0, 2.0]])
    both = replace(SOURCE, num_attention_heads=2, num_key_value_heads=1)
    assert best_heads(head_scores, SOURCE, both) == ([[2, 3], [0, 1]], [[1], [0]])
    # One query head a group: 4 against 3, and 9 against 5; a tie keeps the lower index.
    single = replace(SOURCE, num_attention_heads=1, num_key_value_heads=1)
    assert best_heads(head_scores, SOURCE, single) == ([[1], [0]], [[0], [0]])
    fewer = replace(SOURCE, num_attention_heads=2, num_key_value_heads=2)
    assert best_heads(head_scores, SOURCE, fewer)[0] == [[1, 2], [0, 2]]


def test_chosen_channels_win_over_scores() -> None:
    made = make_selection(scores(), SOURCE, GOAL, Rules(), chosen=Chosen(channels=[[0, 1], [2, 3]]))
    assert made.channels == ((0, 1), (2, 3))


def test_a_head_that_keeps_all_dims_needs_no_basis() -> None:
    target = replace(SOURCE, intermediate_size=2)
    assert selection(replace(GOAL, target=target), value_basis="svd").value_basis == "dims"
    assert selection(value_basis="svd").value_basis == "svd"


@pytest.mark.parametrize(
    "change",
    [
        {"query_key_dims": (((1, 4),) * 2,) * 2},
        {"query_key_dims": (((2, 1, 5, 4),) * 2,) * 2},
        {"query_key_dims": (((1, 1, 4, 4),) * 2,) * 2},
        {"query_key_dims": (((-1, 1, 2, 4),) * 2,) * 2},
        {"query_key_dims": (((0, 1, 4, 5),) * 2,) * 2},
        {"query_heads": ((0, 1, 2), (0, 1, 2, 3))},
        {"value_basis": "svg"},
        {"channels": ((1, 4), (0, 1))},
        {"channels": ((1, 3),)},
        {"value_dims": (((2, 3, 4, 5),), ((1, 3, 4, 5), (0, 1, 2, 3)))},
    ],
)
def test_refuses_an_inconsistent_selection(change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        replace(selection(), **change)


@pytest.mark.parametrize(("best", "expected"), [((0, 1, 2), (0, 1, 2)), ((0, 2, 4), (0, 2, 4)), ((1, 3, 4), (0, 1, 2))])
def test_a_progression_takes_the_stride_that_scores_most(best: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Pairs 0, s, 2s whatever scores highest; the lower stride wins a tie."""
    source = replace(SOURCE, head_dim=12)
    pairs = torch.zeros(2, 2, 6)
    pairs[..., list(best)] = 1.0
    if best == (1, 3, 4):
        pairs[..., 4] = 0.5  # {0, 1, 2} holds one of the good pairs whole, {0, 2, 4} half of one
    made = make_selection(
        Scores(pairs=pairs, values=torch.rand(2, 2, 12), channels=torch.rand(2, 4)),
        source,
        Goal(target=replace(source, head_dim=6), parent=source),
        Rules(pairs_in_progression=True),
    )
    assert made.rotary_pairs(0, 1) == made.rotary_pairs(1, 0) == expected


def test_gains_of_norms_are_the_share_of_what_stays() -> None:
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    made = make_selection(scores(), SOURCE, GOAL, Rules(), norm_shares=(shares, shares.flip(0)))
    assert made.query_norm_gains == pytest.approx((0.5**0.5, 0.9**0.5))  # of pairs 1 and 2
    assert made.key_norm_gains == pytest.approx((0.9**0.5, 0.5**0.5))
    assert Selection.from_json(json.loads(json.dumps(made.to_json()))) == made
