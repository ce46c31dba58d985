"""Rounds on the way to widths for every layer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from transact.geometry import Geometry, Widths
from transact.pruning.shape_rounds import shapes_on_the_way

PARENT = Geometry(
    hidden_size=64,
    num_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    intermediate_size=200,
    vocab_size=500,
    tied_embeddings=True,
)
ENDS = [
    Widths(num_key_value_heads=4, intermediate_size=200),
    Widths(num_key_value_heads=1, intermediate_size=40),
    Widths(num_key_value_heads=3, intermediate_size=8),
]
FINAL = replace(PARENT, head_dim=12).with_layers(ENDS)


def uniform(head_dim: int, width: int) -> Geometry:
    return replace(PARENT, head_dim=head_dim, intermediate_size=width)


def test_every_layer_narrows_towards_its_end_and_never_grows_again() -> None:
    planned = [uniform(16, 168), uniform(14, 136), uniform(14, 112), uniform(12, 88)]
    shapes = shapes_on_the_way(PARENT, planned, FINAL, multiple=8)
    assert shapes[-1] == FINAL and [each.head_dim for each in shapes] == [16, 14, 14, 12]
    for before, after in pairwise([PARENT, *shapes]):
        assert after.parameters() < before.parameters()
        for had, has, end in zip(before.widths(), after.widths(), ENDS, strict=True):
            assert had.intermediate_size >= has.intermediate_size >= end.intermediate_size
            assert had.num_key_value_heads >= has.num_key_value_heads >= end.num_key_value_heads
    for shape, plan in zip(shapes[:-1], planned, strict=False):
        assert all(each.intermediate_size % 8 == 0 for each in shape.widths())
        assert shape.widths()[0] == ENDS[0]  # it stays whole
        # A step of two layers: 8 channels of each, and a head of one.
        assert abs(shape.parameters() - plan.parameters()) <= 64 * (2 * 3 * 8 + 6 * shape.head_dim)


def test_a_width_that_ends_between_multiples_stays_so_far_from_the_next() -> None:
    """The parent's width was never cut, and need not be a multiple; no width on the way is above it."""
    parent = replace(PARENT, intermediate_size=203)
    final = parent.with_layers([replace(each, intermediate_size=min(each.intermediate_size, 203)) for each in ENDS])
    planned = [replace(parent, intermediate_size=150), replace(parent, intermediate_size=82)]
    first, last = shapes_on_the_way(parent, planned, final, multiple=8)
    assert last == final
    assert all(each.intermediate_size % 8 == 0 or each.intermediate_size == 203 for each in first.widths())


def test_every_round_removes_something_though_steps_are_coarse() -> None:
    """Layers that go together jump together; what was planned lies between two jumps."""
    ends = [Widths(num_key_value_heads=4, intermediate_size=width) for width in (136, 136, 128)]
    final = PARENT.with_layers(ends)
    for rounds in (3, 6):
        planned = [uniform(16, 200 - round(67 * number / rounds)) for number in range(1, rounds + 1)]
        shapes = shapes_on_the_way(PARENT, planned, final, multiple=8)
        sizes = [each.parameters() for each in (PARENT, *shapes)]
        assert shapes[-1] == final and all(after < before for before, after in pairwise(sizes))


@pytest.mark.parametrize(("fraction", "rounds"), [(0.9, 4), (0.7, 8)])
def test_heads_go_one_layer_after_another(fraction: float, rounds: int) -> None:
    """A head is as much as a round removes: were all layers to lose theirs at once, some round would remove nothing."""
    parent = replace(PARENT, num_layers=30)
    ends = [
        Widths(num_key_value_heads=3 - number % 2, intermediate_size=200 if number % 3 else 136) for number in range(30)
    ]
    final = parent.with_layers(ends)
    planned = [
        replace(parent, intermediate_size=200 - round(200 * (1 - fraction) * number / rounds))
        for number in range(1, rounds + 1)
    ]
    shapes = [parent, *shapes_on_the_way(parent, planned, final, multiple=8)]
    assert shapes[-1] == final
    assert all(after.parameters() < before.parameters() for before, after in pairwise(shapes))
    heads = [[each.num_key_value_heads for each in shape.widths()] for shape in shapes]
    assert all(len(set(lost)) > 1 for lost in heads[1:-1])  # some layers have lost theirs and others have not yet


def test_a_single_round_goes_to_the_end_at_once() -> None:
    assert shapes_on_the_way(PARENT, [uniform(12, 88)], FINAL, multiple=8) == [FINAL]
