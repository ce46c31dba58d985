"""The search for widths: on losses that are known in closed form it comes near the exact optimum, and keeps within."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from transact.geometry import Geometry, Widths
from transact.pruning.limits import Limits, Serving, shape_bounds
from transact.pruning.shape_search import CHANNELS, HEADS, TRUSTS, Move, ShapeSpace, exchanges, search_shapes

LAYERS = 6
LARGEST = Geometry(
    hidden_size=16,
    num_layers=LAYERS,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=8,
    intermediate_size=96,
    vocab_size=32,
    tied_embeddings=True,
)
START = replace(LARGEST, intermediate_size=48)
SPACE = ShapeSpace(start=START, bounds=shape_bounds(START), largest=LARGEST, multiple=8)


def of_widths(widths: list[int], heads: list[int]) -> Geometry:
    return START.with_layers(
        [Widths(num_key_value_heads=h, intermediate_size=w) for w, h in zip(widths, heads, strict=True)]
    )


NEEDS = (8.0, 1.0, 1.0, 1.0, 1.0, 4.0)
HEAD_NEEDS = (0.001, 0.05, 0.05, 0.05, 0.05, 0.001)


def known_loss(shape: Geometry) -> float:
    """Every layer costs what it needs over its width, as if errors added up."""
    channels = sum(need / each.intermediate_size for need, each in zip(NEEDS, shape.widths(), strict=True))
    heads = sum(need / each.num_key_value_heads for need, each in zip(HEAD_NEEDS, shape.widths(), strict=True))
    return channels + heads


def errors_of(largest: Geometry) -> dict[str, list[torch.Tensor]]:
    """Errors whose squares grow as the known losses do."""
    most = {dimension: getattr(largest, dimension) for dimension in (CHANNELS, HEADS)}
    return {
        dimension: [(1 / torch.arange(size + 1).clamp_min(0.5) - 1 / size).sqrt()] * LAYERS
        for dimension, size in most.items()
    }


ERRORS = errors_of(LARGEST)


def least_of_all() -> float:
    """The exact optimum, by dynamic programming over layers and parameters."""
    budget = START.parameters() - (START.parameters() - START.transitional_parameters())
    best: dict[int, float] = {0: 0.0}
    for need, head_need in zip(NEEDS, HEAD_NEEDS, strict=True):
        found: dict[int, float] = {}
        for (used, loss), width, heads in itertools.product(best.items(), range(8, 97, 8), (1, 2, 3)):
            one = of_widths([width] * LAYERS, [heads] * LAYERS).transitional_parameters() // LAYERS
            total = used + one
            value = loss + need / width + head_need / heads
            if total <= budget and value < found.get(total, float("inf")):
                found[total] = value
        best = found
    return min(best.values())


def test_it_comes_near_the_exact_optimum_within_what_is_allowed() -> None:
    measured: list[Geometry] = []

    def measure(shape: Geometry) -> float:
        measured.append(shape)
        return known_loss(shape)

    found, loss = search_shapes(SPACE, measure, 400, ERRORS)
    assert loss == known_loss(found) == min(known_loss(each) for each in measured if SPACE.allows(each))
    assert found.parameters() <= START.parameters()
    assert found.kv_bytes_per_token() <= START.kv_bytes_per_token()
    uniform, least = known_loss(START), least_of_all()
    assert loss - least < 0.1 * (uniform - least)
    assert len(measured) <= 400


def test_a_layer_may_get_back_a_head_where_all_begin_with_fewer() -> None:
    """Two of three heads in every layer; the first and the last need theirs a hundred times as much as others."""
    start = replace(START, num_attention_heads=4, num_key_value_heads=2)
    needs = (5.0, 0.05, 0.05, 0.05, 0.05, 5.0)

    def measure(shape: Geometry) -> float:
        heads = sum(need / each.num_key_value_heads for need, each in zip(needs, shape.widths(), strict=True))
        return heads + sum(1 / each.intermediate_size for each in shape.widths())

    found, loss = search_shapes(replace(SPACE, start=start, bounds=shape_bounds(start)), measure, 400, ERRORS)
    heads = [each.num_key_value_heads for each in found.widths()]
    assert heads[0] == heads[-1] == 3 and loss < measure(start)
    assert found.parameters() <= start.parameters() and found.kv_bytes_per_token() <= start.kv_bytes_per_token()


FIRST = 1 + 2 * LAYERS  # the start, and of each layer a narrower MLP and a head less


def changed_layers(shape: Geometry) -> int:
    return sum(one != other for one, other in zip(shape.widths(), START.widths(), strict=True))


def test_it_goes_on_from_the_allocation_where_that_is_better() -> None:
    measured: list[Geometry] = []

    def measure(shape: Geometry) -> float:
        measured.append(shape)
        return known_loss(shape)

    found, loss = search_shapes(SPACE, measure, FIRST + len(TRUSTS), ERRORS)
    assert [changed_layers(each) for each in measured[:FIRST]] == [0] + [1] * (FIRST - 1)
    assert found in measured[FIRST:] and changed_layers(found) > 2
    assert known_loss(START) - loss > 0.6 * (known_loss(START) - least_of_all())
    search_shapes(SPACE, measure, 100, ERRORS)
    after = measured[2 * FIRST + 2 * len(TRUSTS) :]
    assert all(sum(a != b for a, b in zip(each.widths(), found.widths(), strict=True)) == 1 for each in after[:10])


def test_where_allocations_are_no_better_it_goes_on_from_the_start() -> None:
    measured: list[Geometry] = []

    def measure(shape: Geometry) -> float:
        measured.append(shape)
        return known_loss(shape) + (100 if changed_layers(shape) > 1 else 0)

    assert search_shapes(SPACE, measure, FIRST + len(TRUSTS), ERRORS) == (START, known_loss(START))
    assert changed_layers(measured[-1]) > 1
    measured.clear()
    search_shapes(SPACE, measure, 60, ERRORS)
    assert [changed_layers(each) for each in measured[FIRST + len(TRUSTS) :][:LAYERS]] == [1] * LAYERS  # wider
    assert len(set(measured)) == len(measured)


def test_an_allocation_that_breaks_a_further_limit_is_not_measured() -> None:
    measured: list[Geometry] = []

    def measure(shape: Geometry) -> float:
        measured.append(shape)
        return known_loss(shape)

    space = replace(SPACE, meets=lambda shape: changed_layers(shape) < 2)
    assert search_shapes(space, measure, FIRST + len(TRUSTS), ERRORS) == (START, known_loss(START))
    assert len(measured) == FIRST


def test_the_same_measures_give_the_same_shapes() -> None:
    assert search_shapes(SPACE, known_loss, 200, ERRORS) == search_shapes(SPACE, known_loss, 200, ERRORS)


@pytest.mark.parametrize("evaluations", [1, 10, 14, 15, 40])
def test_no_more_is_measured_than_asked_for(evaluations: int) -> None:
    count = 0

    def measure(shape: Geometry) -> float:
        nonlocal count
        count += 1
        return known_loss(shape)

    found, loss = search_shapes(SPACE, measure, evaluations, ERRORS)
    assert count <= evaluations and loss <= known_loss(START)
    assert (found == START) == (evaluations < FIRST + len(TRUSTS))


def test_what_is_not_a_number_is_never_chosen() -> None:
    found, loss = search_shapes(SPACE, lambda shape: known_loss(shape) if shape == START else float("nan"), 100, ERRORS)
    assert (found, loss) == (START, known_loss(START))


def test_an_allocation_chooses_among_multiples_and_whole_rows() -> None:
    assert SPACE.sizes(CHANNELS) == list(range(8, 97, 8)) and SPACE.sizes(HEADS) == [1, 2, 3]
    wide = replace(SPACE, largest=replace(LARGEST, intermediate_size=8 * 700))
    assert wide.sizes(CHANNELS) == list(range(24, 5600, 24))
    assert replace(SPACE, row=32).sizes(HEADS) == [2, 3]  # two heads of 8 share a key-value head


def test_moves_keep_to_multiples_and_bounds() -> None:
    uneven = replace(LARGEST, intermediate_size=100)
    space = ShapeSpace(start=START, bounds=shape_bounds(START), largest=uneven, multiple=8)
    top = space.moved(START, 0, CHANNELS, 64)
    assert top is not None and top.widths()[0].intermediate_size == 100  # never cut: no multiple
    below = space.moved(top, 0, CHANNELS, -8)
    assert below is not None and below.widths()[0].intermediate_size == 88
    assert space.moved(START, 0, CHANNELS, -48) is None
    assert space.moved(START, 2, HEADS, 1) is None
    fewer = space.moved(START, 2, HEADS, -2)
    assert fewer is not None and fewer.of_layer(2).num_attention_heads == 2
    assert space.moved(fewer, 2, HEADS, -1) is None
    rows = replace(space, row=32)  # two heads of 8 share a key-value head
    assert rows.moved(START, 2, HEADS, -1) is not None and rows.moved(START, 2, HEADS, -2) is None


def test_an_exchange_takes_where_it_costs_least_and_gives_where_it_gains_most() -> None:
    gains = (0.1, 0.5, 0.0, 0.0, 0.0, 0.3)
    moves = [Move(layer=layer, dimension=CHANNELS, by=8, gain=gain) for layer, gain in enumerate(gains)]
    moves += [
        Move(layer=layer, dimension=CHANNELS, by=-8, gain=-cost) for layer, cost in enumerate((1, 1, 0.2, 0.05, 1, 1))
    ]
    found = [[each.intermediate_size for each in shape.widths()] for shape in exchanges(SPACE, START, moves)]
    assert found == [
        [48, 56, 48, 40, 48, 48],  # 0.5 for 0.05
        [48, 56, 48, 32, 48, 56],  # 0.3 for 0.1, the second time in layer 3
        [48, 64, 40, 32, 48, 56],  # 0.25 for 0.2
    ]


def test_heads_go_as_many_at_a_time_as_the_rows_take() -> None:
    """Six heads of 8 dims in rows of 24: three go at a time, each with its query head."""
    largest = replace(LARGEST, num_attention_heads=6, num_key_value_heads=6)
    start = replace(largest, intermediate_size=48)
    space = ShapeSpace(start=start, bounds=shape_bounds(start), largest=largest, multiple=8, row=24)
    measured: list[int] = []

    def measure(shape: Geometry) -> float:
        measured.extend(each.num_key_value_heads for each in shape.widths())
        return known_loss(shape)

    search_shapes(space, measure, 60, errors_of(largest))
    assert set(measured) == {3, 6}


def test_a_limit_of_memory_is_filled_by_channels_in_place_of_heads() -> None:
    """With long contexts a head is worth more memory than channels of as many parameters: they may become more."""
    serving = Serving(context_tokens=64)
    asked = serving.figures(START)["memory_bytes"]
    limits = Limits(parent=LARGEST, serving=serving, asked={"memory_bytes": asked})
    other = replace(LARGEST, num_attention_heads=2, num_key_value_heads=1, intermediate_size=88)
    bounds = shape_bounds(START, limits, [START, other])
    few_heads, measured = ShapeSpace(start=START, bounds=bounds, largest=LARGEST, multiple=8), []

    def wants_channels(shape: Geometry) -> float:
        measured.append(shape)
        return sum(1 / each.intermediate_size for each in shape.widths())

    found, _ = search_shapes(few_heads, wants_channels, 200, ERRORS)
    assert not limits.broken(other)
    assert START.parameters() < found.parameters() <= other.parameters()
    assert found.kv_bytes_per_token() < START.kv_bytes_per_token()
    assert serving.figures(found)["memory_bytes"] <= asked
