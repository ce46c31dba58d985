"""The dimensions of the rounds on the way to widths for every layer: each layer narrows towards what it ends with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from transact.geometry import Geometry, Widths

STEPS = 1024  # in which a layer's way is divided


def shapes_on_the_way(parent: Geometry, uniform: Sequence[Geometry], final: Geometry, multiple: int) -> list[Geometry]:
    """Return the dimensions after each round of a run that ends with widths for every layer.

    All layers go the same share of their own ways at the same time, and none ever grows again; where that is less than
    a head or a multiple of channels, one layer goes before another. A round has the `head_dim` of the uniform
    dimensions that were planned for it, and as nearly as can be as many parameters.

    Args:
        uniform: dimensions planned for each round, where all layers are alike; the last one's are as large as `final`.
        multiple: what the width of an MLP is a multiple of, unless it is the parent's.
    """
    found, done = [parent], 0
    for number, planned in enumerate(uniform[:-1], start=1):
        shape = partial(_part_of_the_way, parent, planned.head_dim, final, multiple)
        wanted = planned.parameters()
        step = _first(shape, done, wanted)
        near = min((step, max(done, step - 1)), key=lambda each: abs(shape(each).parameters() - wanted))
        # Every round removes something, and leaves a step to each later one, where there are so many.
        least, most = _first(shape, done, found[-1].parameters() - 1), STEPS
        for _ in range(len(uniform) - number):
            most = _first(shape, done, shape(most).parameters()) - 1
        done = max(least, min(near, most))
        found.append(shape(done))
    return [*found[1:], final]


def _first(shape: Callable[[int], Geometry], done: int, parameters: int) -> int:
    """Return the first step, after those that are done, whose shape has no more parameters; else the last."""
    steps = range(done, STEPS)
    return done + bisect_left(steps, -parameters, key=lambda step: -shape(step).parameters())


def _part_of_the_way(parent: Geometry, head_dim: int, final: Geometry, multiple: int, step: int) -> Geometry:
    layers = []
    for number, (had, has) in enumerate(zip(parent.widths(), final.widths(), strict=True)):
        late = (2 * number + 1) * STEPS // (2 * parent.num_layers)  # so that the layers' steps fall apart
        heads = _between(had.num_key_value_heads, has.num_key_value_heads, step, 1, late)
        channels = _between(had.intermediate_size, has.intermediate_size, step, multiple, late)
        layers.append(Widths(num_key_value_heads=heads, intermediate_size=channels))
    return replace(parent, head_dim=head_dim).with_layers(layers)


def _between(had: int, has: int, step: int, multiple: int, late: int) -> int:
    """Return a width so many steps on the way, whole multiples above its end.

    late: from 0 to STEPS - 1; the higher, the longer each multiple stays.
    """
    multiples = -(-(had - has) // multiple)
    return min(had, has + (multiples * (STEPS - step) + late) // STEPS * multiple)
