"""The exact allocation against all shapes of a small model, and the costs that it goes by, by hand."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import pytest
import torch

from transact.geometry import Geometry, Widths
from transact.pruning.allocation import POWER, Costs, allocate, expected_costs
from transact.pruning.limits import Bound, shape_bounds

START = Geometry(
    hidden_size=8,
    num_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=16,
    vocab_size=32,
    tied_embeddings=True,
)
SIZES, HEADS = (8, 16, 24, 32), (1, 2, 3)


def of_widths(start: Geometry, widths: tuple[int, ...], heads: tuple[int, ...]) -> Geometry:
    return start.with_layers(
        [Widths(num_key_value_heads=h, intermediate_size=w) for w, h in zip(widths, heads, strict=True)]
    )


def cost_of(shape: Geometry, channels: list[Costs], heads: list[Costs]) -> float:
    return sum(
        channels[layer][each.intermediate_size] + heads[layer][each.num_key_value_heads]
        for layer, each in enumerate(shape.widths())
    )


def random_costs(sizes: tuple[int, ...], draw: random.Random) -> list[Costs]:
    """Costs that need neither fall nor be convex."""
    return [{size: draw.uniform(-1, 1) for size in sizes} for _ in range(START.num_layers)]


@pytest.mark.parametrize(
    "start",
    [
        START,
        replace(START, intermediate_size=13),  # not a multiple: some of it cannot be given to anyone
        replace(START, query_key_value_bias=True, query_key_norm=True),
        replace(START, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32),
        of_widths(START, (8, 24, 32), (1, 2, 1)),
    ],
    ids=["uniform", "uneven", "vectors", "one_head", "of_layers"],
)
def test_it_is_the_cheapest_of_all_shapes_that_take_no_more(start: Geometry) -> None:
    shapes = [
        of_widths(start, widths, heads)
        for widths in itertools.product(SIZES, repeat=3)
        for heads in itertools.product(HEADS, repeat=3)
    ]
    allowed = [
        shape
        for shape in shapes
        if shape.parameters() <= start.parameters() and shape.kv_bytes_per_token() <= start.kv_bytes_per_token()
    ]
    assert len(allowed) < len(shapes)
    for seed in range(5):
        draw = random.Random(seed)
        channels, heads = random_costs(SIZES, draw), random_costs(HEADS, draw)
        found = allocate(start, channels, heads, shape_bounds(start))
        assert found in allowed
        least = min(cost_of(shape, channels, heads) for shape in allowed)
        assert cost_of(found, channels, heads) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("cache", [0.5, 12.0], ids=["short_context", "long_context"])
def test_bounds_of_heads_and_channels_together_are_met_exactly(cache: float) -> None:
    """Memory counts both; the heads are limited once more. The oracle tries all shapes."""
    bounds = (
        Bound(size=lambda shape: shape.parameters() * 2 + shape.kv_bytes_per_token() * cache, most=4_000 + 768 * cache),
        Bound(size=Geometry.kv_bytes_per_token, most=START.kv_bytes_per_token() * 1.2),
    )
    shapes = [
        of_widths(START, widths, heads)
        for widths in itertools.product(SIZES, repeat=3)
        for heads in itertools.product(HEADS, repeat=3)
    ]
    allowed = [shape for shape in shapes if all(each.admits(shape) for each in bounds)]
    assert 0 < len(allowed) < len(shapes)
    for seed in range(5):
        draw = random.Random(seed)
        channels, heads = random_costs(SIZES, draw), random_costs(HEADS, draw)
        found = allocate(START, channels, heads, bounds)
        assert found in allowed
        least = min(cost_of(shape, channels, heads) for shape in allowed)
        assert cost_of(found, channels, heads) == pytest.approx(least, abs=1e-12)


def test_by_hand() -> None:
    """Two layers of 16 channels: 8 go from the second to the first, since this costs less than it gains."""
    start, stay = replace(START, num_layers=2), [{2: 0.0}, {2: 0.0}]
    found = allocate(start, [{8: 5.0, 16: 2.0, 24: 0.0}, {8: 1.0, 16: 0.0, 24: -0.5}], stay, shape_bounds(start))
    assert [each.intermediate_size for each in found.widths()] == [24, 8]
    # A head is 2 * 8 * 4 * (2 + 1) weights, 8 channels of the MLP 3 * 8 * 8: the same.
    found = allocate(start, [{16: 2.0, 24: 0.0}, {16: 0.0}], [{2: 0.0, 1: 9.0}, {2: 0.0, 1: 1.0}], shape_bounds(start))
    assert found == of_widths(start, (24, 16), (2, 1))


def test_where_nothing_fits_it_says_so() -> None:
    with pytest.raises(ValueError, match="no shape of these widths"):
        allocate(START, [{24: 0.0}] * 3, [{2: 0.0}] * 3, shape_bounds(START))


def test_a_large_model_takes_seconds() -> None:
    """80 layers of 28,672 channels in 112 widths each, 8 key-value heads: under a second on a busy core."""
    start = replace(START, num_layers=80, num_attention_heads=64, num_key_value_heads=8, intermediate_size=14_336)
    draw = random.Random(0)
    channels = [{width: draw.random() / width for width in range(256, 28_673, 256)} for _ in range(80)]
    heads = [{count: draw.random() / count for count in range(1, 9)} for _ in range(80)]
    begun = time.process_time()
    found = allocate(start, channels, heads, shape_bounds(start))
    assert time.process_time() - begun < 30
    assert found.parameters() <= start.parameters()
    assert found.kv_bytes_per_token() <= start.kv_bytes_per_token()


def test_costs_by_hand() -> None:
    """Errors 1, 0.8, 0.6, 0.4, 0.2 for 0 to 4 units; from 2 to 1 the square grows by 0.28."""
    errors, sizes = [torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2])] * 4, (1, 2, 3, 4)
    rises = {0: (1, 0.3), 1: (1, 0.1), 2: (1, -5.0)}  # what gained by noise costs nothing, at the least
    costs = expected_costs(sizes, errors, [2, 2, 2, 2], rises, 0.5)
    assert POWER == 2
    for layer, rise in ((0, 0.2), (1, 0.1), (2, 0.05)):  # half its own and half the median, 0.1
        expected = [rise, 0.0, rise * (0.4**2 - 0.6**2) / 0.28, rise * (0.2**2 - 0.6**2) / 0.28]
        assert list(costs[layer].values()) == pytest.approx(expected) and list(costs[layer]) == [1, 2, 3, 4]
    assert costs[3] == {2: 0.0}  # it was not narrowed


def test_a_layer_of_which_nothing_useful_was_measured_keeps_its_size() -> None:
    errors = [torch.tensor([1.0, 0.5, 0.0]), torch.zeros(3), torch.tensor([1.0, 0.5, 0.0])]
    costs = expected_costs((1, 2), errors, [2, 2, 2], {0: (1, math.inf), 1: (1, 0.1), 2: (1, 0.3)}, 1.0)
    assert costs == [{2: 0.0}, {2: 0.0}, {1: pytest.approx(0.3), 2: 0.0}]
