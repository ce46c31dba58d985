from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from transact.geometry import Geometry
from transact.pruning.schedule import SCHEDULES, remove_fractions
from transact.pruning.search_space import (
    Multiples,
    Removal,
    SearchSpace,
    explicit_geometry,
    reached_fraction,
    solve_geometry,
    solve_on_the_way,
    solve_rounds,
    splits,
)

LLAMA_7B = Geometry(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
    tied_embeddings=False,
)
LLAMA_8B = replace(LLAMA_7B, num_key_value_heads=8, intermediate_size=14336, vocab_size=128256)
# Every number easy: one head dim costs 80 parameters, one channel 60, embeddings and norms 130.
SMALL = Geometry(
    hidden_size=10,
    num_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=40,
    vocab_size=8,
    tied_embeddings=True,
)
LARGE_MULTIPLES = Multiples(head_dim=32, intermediate_size=256)
FINE = Multiples(head_dim=2, intermediate_size=1)
HALF_OF_SMALL = Removal(parent=SMALL, remove_fraction=0.5)


def solved(parent: Geometry, fraction: float, multiples: Multiples, largest: Geometry | None = None) -> Geometry:
    budget = Removal(parent=parent, remove_fraction=fraction)
    return solve_geometry(budget, SearchSpace.below(largest or parent, multiples))


def dims(geometry: Geometry) -> tuple[int, int]:
    return geometry.head_dim, geometry.intermediate_size


def test_half_of_the_small_model_by_hand() -> None:
    assert SMALL.parameters() == 16 * 80 + 40 * 60 + 130  # 3810
    # Keep 1905: 8 head dims cost 640, embeddings and norms 130, which leaves 18.9 channels.
    assert dims(solved(SMALL, 0.5, FINE)) == (8, 19)


@pytest.mark.parametrize("parent", [LLAMA_7B, LLAMA_8B])
@pytest.mark.parametrize("asked", [0.2, 0.3, 0.5, 0.7])
def test_reaches_the_total_on_large_models(parent: Geometry, asked: float) -> None:
    child = solved(parent, asked, LARGE_MULTIPLES)
    one_multiple = 3 * 32 * 4096 * 256 / parent.parameters()
    assert reached_fraction(parent, child) == pytest.approx(asked, abs=one_multiple)
    assert child.head_dim % 32 == 0 and child.intermediate_size % 256 == 0
    # The same share of both, up to half a multiple of the coarse one.
    shares = child.head_dim / 128 - child.intermediate_size / parent.intermediate_size
    assert abs(shares) < 0.25


def test_seven_billion_halved() -> None:
    assert dims(solved(LLAMA_7B, 0.5, LARGE_MULTIPLES)) == (64, 5120)


def test_tries_the_neighbouring_head_dim_at_a_bound() -> None:
    # Balanced would be (8, 19), but the previous round left 12 channels: heads make up for it.
    ceiling = replace(SMALL, intermediate_size=12)
    assert dims(solved(SMALL, 0.5, FINE, ceiling)) == (14, 11)


def test_floor_and_ceiling_hold() -> None:
    ceiling = replace(SMALL, head_dim=10, intermediate_size=30)
    floor = replace(SMALL, head_dim=10, intermediate_size=3)
    child = solve_on_the_way(HALF_OF_SMALL, SearchSpace(multiples=FINE, smallest=floor, largest=ceiling))
    assert dims(child) == (10, 16)  # (1905 - 130 - 800) / 60 = 16.25


def test_nearest_when_only_heads_may_move() -> None:
    floor = replace(SMALL, head_dim=2)
    # 381 parameters to go at 80 a head dim, in twos: 4 head dims are 320.
    assert dims(
        solve_on_the_way(
            Removal(parent=SMALL, remove_fraction=0.1), SearchSpace(multiples=FINE, smallest=floor, largest=SMALL)
        )
    ) == (12, 40)


def test_dimension_that_is_no_multiple_may_stay_uncut() -> None:
    child = solved(SMALL, 0.3, Multiples(head_dim=32, intermediate_size=1))
    assert child.head_dim == 16


def test_heads_go_beside_dims_of_every_head_with_the_queries_that_share_them() -> None:
    shapes = SearchSpace.below(LLAMA_8B, LARGE_MULTIPLES, fewer_heads=True).attention_shapes()
    assert [(each.num_attention_heads, each.num_key_value_heads, each.head_dim) for each in shapes] == [
        (queries, heads, head_dim) for queries, heads in ((32, 8), (16, 4)) for head_dim in (128, 96, 64, 32)
    ]
    assert {each.num_key_value_heads for each in SearchSpace.below(LLAMA_8B, LARGE_MULTIPLES).attention_shapes()} == {8}


@pytest.mark.parametrize(
    ("heads", "multiple", "fewer"),
    [(1, 1, []), (2, 1, [1]), (3, 1, [2]), (5, 1, [4, 3]), (32, 1, [24, 16]), (32, 16, [16]), (6, 4, [4]), (8, 8, [])],
)
def test_fewer_heads_are_three_quarters_and_half_rounded_up(heads: int, multiple: int, fewer: list[int]) -> None:
    parent = replace(LLAMA_7B, num_attention_heads=2 * heads, num_key_value_heads=heads, hidden_size=5760)
    assert replace(FINE, num_key_value_heads=multiple).key_value_heads_below(parent) == fewer
    assert replace(FINE, keeps_attention=True).key_value_heads_below(parent) == []


def test_stock_llama_has_a_hidden_size_that_its_query_heads_divide() -> None:
    assert FINE.key_value_heads_below(LLAMA_7B) == [16] and 4096 % 24 and FINE.key_value_heads_below(LLAMA_8B) == [4]


def test_each_number_of_heads_has_the_sizes_whose_rows_suit() -> None:
    """Rows of 32: nine heads take 32 and 64, six take multiples of 16, which are no ends for nine."""
    parent = replace(LLAMA_7B, num_attention_heads=9, num_key_value_heads=3, head_dim=64, hidden_size=576)
    space = SearchSpace.below(parent, Multiples(head_dim=8, intermediate_size=8, row=32), fewer_heads=True)
    found = [(each.num_attention_heads, each.head_dim) for each in space.attention_shapes()]
    assert found == [(9, 64), (9, 32), (6, 64), (6, 48), (6, 32), (6, 16)]
    assert [(each.num_attention_heads, each.head_dim, each.intermediate_size) for each in space.least()] == [
        (*each, 8) for each in found
    ]


def test_rounds_lead_to_fewer_heads_on_the_straight_way() -> None:
    """Nine heads of 64 dims and 1,536 channels in four steps: heads go in the second one, and need not be the last."""
    parent = replace(
        LLAMA_7B, hidden_size=576, num_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        intermediate_size=1536, vocab_size=49152, tied_embeddings=True,
    )  # fmt: skip
    space = SearchSpace.below(parent, Multiples(head_dim=32, intermediate_size=32, row=32), fewer_heads=True)
    final = replace(parent, num_attention_heads=6, num_key_value_heads=2, head_dim=32, intermediate_size=832)
    found = solve_rounds(space, [0.1, 0.2, 0.3, 0.4], final)
    assert [(each.num_attention_heads, each.head_dim) for each in found] == [(9, 64), (6, 64), (6, 64), (6, 32)]
    assert found[-1] == final
    for before, after in pairwise([parent, *found]):
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"):
            assert getattr(after, name) <= getattr(before, name)
        assert after.parameters() < before.parameters()


def test_says_how_much_can_be_removed() -> None:
    # What stays at least: 130 + 2 head dims + 1 channel = 350 of 3810.
    with pytest.raises(ValueError, match=r"fraction=0\.95 cannot be reached: at most 0\.9081 .*embeddings"):
        solved(SMALL, 0.95, FINE)
    assert dims(solved(SMALL, 0.908, FINE)) == (2, 1)
    with pytest.raises(ValueError, match=r"head_dim a multiple of 32, 4 or 8 key-value heads and intermediate_size"):
        splits(
            Removal(parent=LLAMA_8B, remove_fraction=0.99),
            SearchSpace.below(LLAMA_8B, LARGE_MULTIPLES, fewer_heads=True),
        )


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("parent", [LLAMA_7B, LLAMA_8B])
def test_rounds_never_grow_and_meet_their_fractions(kind: str, parent: Geometry) -> None:
    fractions = remove_fractions(0.5, 3, kind)
    rounds = solve_rounds(SearchSpace.below(parent, LARGE_MULTIPLES), fractions)
    assert rounds[-1] == solved(parent, 0.5, LARGE_MULTIPLES)
    previous = parent
    for geometry, asked in zip(rounds, fractions, strict=True):
        assert geometry.head_dim <= previous.head_dim
        assert geometry.intermediate_size <= previous.intermediate_size
        assert geometry.parameters() < previous.parameters()
        assert reached_fraction(parent, geometry) == pytest.approx(asked, abs=0.02)
        previous = geometry


def test_rounds_end_exactly_at_given_dimensions() -> None:
    final = replace(SMALL, head_dim=16, intermediate_size=10)
    rounds = solve_rounds(SearchSpace.below(SMALL, FINE), [0.25, 0.5], final)
    assert [dims(geometry) for geometry in rounds] == [(16, 25), (16, 10)]


def test_rounds_go_straight_to_given_dimensions() -> None:
    final = replace(SMALL, head_dim=8, intermediate_size=40)
    rounds = solve_rounds(SearchSpace.below(SMALL, FINE), [0.5, 1.0], final)
    assert [dims(geometry) for geometry in rounds] == [(12, 40), (8, 40)]


@pytest.mark.parametrize("asked", [0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.7])
def test_coarse_multiples_leave_no_round_empty(asked: float) -> None:
    """A step of head_dim is twice a round's share here: it is taken while there is something left to cut after it."""
    coarse = Multiples(head_dim=32, intermediate_size=128)
    found = solve_rounds(SearchSpace.below(LLAMA_7B, coarse), remove_fractions(asked, 8, "linear"))
    sizes = [LLAMA_7B.parameters(), *(each.parameters() for each in found)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert found[-1] == solved(LLAMA_7B, asked, coarse)
    for turn, each in enumerate(found, start=1):
        assert reached_fraction(LLAMA_7B, each) == pytest.approx(asked * turn / 8, abs=0.08)  # a step of head_dim


@pytest.mark.parametrize(
    ("parent", "final", "heads", "kind"),
    [
        # Two query heads for each of 8 groups become one: a single step, whatever the number of heads.
        ({"num_attention_heads": 16, "intermediate_size": 640}, {"num_attention_heads": 8}, True, "cubic"),
        ({"num_attention_heads": 32, "intermediate_size": 1000}, {"head_dim": 32}, False, "linear"),
    ],
)
def test_rounds_are_found_where_there_are_steps(
    parent: dict[str, int], final: dict[str, int], heads: bool, kind: str
) -> None:
    small = {"hidden_size": 64, "num_key_value_heads": 8, "head_dim": 32, "num_layers": 2, "vocab_size": 512}
    dense = replace(LLAMA_7B, **(small | parent))
    last = replace(dense, **(final | {"intermediate_size": parent["intermediate_size"] - 208}))
    space = SearchSpace.below(dense, Multiples(head_dim=8, intermediate_size=8), cuts_heads=heads)
    found = solve_rounds(space, remove_fractions(0.1, 8, kind), last)
    sizes = [dense.parameters(), *(each.parameters() for each in found)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert found[-1] == last


def test_every_round_must_remove_something() -> None:
    with pytest.raises(ValueError, match=r"round 1 of 50 would remove nothing: use fewer rounds"):
        solve_rounds(SearchSpace.below(LLAMA_7B, LARGE_MULTIPLES), remove_fractions(0.1, 50, "linear"))
    with pytest.raises(ValueError, match="round 1 of 1 would remove nothing"):
        solve_rounds(SearchSpace.below(LLAMA_7B, LARGE_MULTIPLES), [0.001])


def test_explicit_geometry() -> None:
    assert dims(explicit_geometry(SMALL, 8, None)) == (8, 40)
    assert dims(explicit_geometry(SMALL, None, 7)) == (16, 7)


@pytest.mark.parametrize(
    ("head_dim", "intermediate_size", "message"),
    [
        (7, None, r"prune\.head_dim is 7; allowed: even, from 2 to 16"),
        (18, None, r"prune\.head_dim is 18"),
        (0, None, r"prune\.head_dim is 0"),
        (None, 41, r"prune\.intermediate_size is 41; allowed: from 1 to 40"),
        (None, 0, r"prune\.intermediate_size is 0"),
        (16, 40, "at least one of them below"),
        (None, None, "at least one of them below"),
    ],
)
def test_explicit_geometry_refuses(head_dim: int | None, intermediate_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explicit_geometry(SMALL, head_dim, intermediate_size)


@pytest.mark.parametrize(("head_dim", "intermediate_size"), [(3, 1), (0, 1), (2, 0)])
def test_multiples_refuse(head_dim: int, intermediate_size: int) -> None:
    with pytest.raises(ValueError, match="the multiple of"):
        Multiples(head_dim=head_dim, intermediate_size=intermediate_size)


@pytest.mark.parametrize(
    ("multiple", "counts"), [(1, [*range(32, 0, -1)]), (8, [32, 24, 16, 8]), (5, [32, *range(30, 0, -5)]), (64, [32])]
)
def test_whole_heads_stay_in_multiples_too(multiple: int, counts: list[int]) -> None:
    """Of the GPUs that will share the model; the parent's own number always stays allowed."""
    multiples = Multiples(head_dim=8, intermediate_size=8, num_key_value_heads=multiple)
    space = SearchSpace.below(LLAMA_7B, multiples, cuts_heads=True)
    assert [each.num_key_value_heads for each in space.attention_shapes()] == counts
    assert min(each.num_key_value_heads for each in space.least()) == counts[-1]
