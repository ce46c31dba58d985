"""Share a model's size out among its layers exactly, where what each layer's width and heads cost adds up.

A layer has a cost for each width of its MLP and one for each number of key-value heads: the error of its refit, scaled
by what narrowing this layer was measured to do to the whole model. Heads decide the KV bytes and the parameters of
attention, widths the rest of the parameters: two dynamic programmes over the layers are combined for every number of
heads in all. What a shape takes of anything that is limited is a sum over heads and channels, so every limit leaves
room for so many channels beside so many heads.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from transact.geometry import Geometry, Widths
from transact.pruning.limits import Bound

Costs = Mapping[int, float]  # of one layer: width, or number of heads -> what it costs
# The loss rises with this power of a layer's relative error. On SmolLM2-135M 128 of 576 channels less cost 1.5 to 1.8
# times what as many more gain, where errors alone would say 1.2 and their squares say 1.5.
POWER = 2.0


def expected_costs(
    sizes: Sequence[int],
    errors: Sequence[Tensor],
    present: Sequence[int],
    rises: Mapping[int, tuple[int, float]],
    trust: float,
) -> list[Costs]:
    """Return for each layer by how much the loss is expected to rise for each size; below zero it falls.

    Layers differ in what their errors do to the model, which is measured, and not in how errors grow, which is known:
    a layer's errors to the power of `POWER` are scaled to what narrowing it has cost. That is one measurement with its
    noise, and what is chosen for its least cost is chosen for its noise too: so it is mixed with the median of all.

    Args:
        sizes: widths of an MLP, or numbers of heads.
        errors: of each layer the relative error of its refit for every size, (largest + 1,), as `nested_errors`.
        present: the size of each layer in the shape that was narrowed.
        rises: layer -> its size in a shape that is narrower in this layer alone, and by how much the loss is higher
            there; a layer without them, or whose rise is not finite, keeps its size.
        trust: weight of a layer's own rise beside the median of all, 0 to 1.
    """
    known = {layer: (size, max(rise, 0.0)) for layer, (size, rise) in rises.items() if math.isfinite(rise)}
    typical = statistics.median([rise for _, rise in known.values()] or [0.0])
    found: list[Costs] = []
    for layer, size in enumerate(present):
        narrower, rise = known.get(layer, (size, 0.0))
        powers = (errors[layer] ** POWER).tolist()
        unit = powers[narrower] - powers[size]
        if unit <= 0:
            found.append({size: 0.0})
            continue
        scale = (trust * rise + (1 - trust) * typical) / unit
        found.append({each: scale * (powers[each] - powers[size]) for each in sizes})
    return found


def allocate(like: Geometry, channels: Sequence[Costs], heads: Sequence[Costs], bounds: Sequence[Bound]) -> Geometry:
    """Return the shape whose costs have the least sum among those that all bounds admit.

    Args:
        like: a shape whose other dimensions are kept.
        channels: of each layer the widths that its MLP may have; their greatest common divisor is the step of the
            programme, which takes as long as widths of a layer times steps of all layers together.
        heads: of each layer the numbers of key-value heads that it may have.

    Raises:
        ValueError: even the smallest shape takes more.
    """
    step = math.gcd(*(width for costs in channels for width in costs))
    rooms = [_room(like, bound, step) for bound in bounds]
    most_heads, most_steps = sum(map(max, heads)), sum(map(max, channels)) // step

    def steps_beside(count: int) -> int:
        """Return how many steps of channels there is room for beside so many heads; -1: there is none for these."""
        left = [(room - count * per_head, per_step) for room, per_head, per_step in rooms]
        if any(each < 0 for each, _ in left):
            return -1
        return int(min([most_steps, *(each // per_step for each, per_step in left if per_step)]))

    of_heads = _least_costs(heads, 1, most_heads)
    of_channels = _least_costs(channels, step, max(0, steps_beside(0)))
    least, total = math.inf, 0
    for count in range(most_heads + 1):
        steps = steps_beside(count)
        if steps >= 0 and (cost := float(of_heads[0][count] + of_channels[0][steps])) < least:
            least, total = cost, count
    if least == math.inf:
        raise ValueError("no shape of these widths takes as little")
    counts, widths = _chosen(of_heads, 1, total), _chosen(of_channels, step, steps_beside(total))
    return like.with_layers(
        [Widths(num_key_value_heads=h, intermediate_size=w) for h, w in zip(counts, widths, strict=True)]
    )


def _room(like: Geometry, bound: Bound, step: int) -> tuple[float, float, float]:
    """Return the room for heads and channels, and what a head takes of it and a step of channels.

    In units of a layer's share, so that whole numbers stay whole.
    """
    layers = like.num_layers
    one, wider, headed = (bound.size(_alike(like, *each)) for each in ((1, 1), (1, 2), (2, 1)))
    per_channel, per_head = wider - one, headed - one
    return layers * (bound.most - one + per_channel + per_head), per_head, per_channel * step


def _alike(like: Geometry, heads: int, width: int) -> Geometry:
    return like.with_layers([Widths(num_key_value_heads=heads, intermediate_size=width)] * like.num_layers)


def _least_costs(options: Sequence[Costs], step: int, most: int) -> tuple[Tensor, list[Tensor]]:
    """Return the least cost of all layers for each number of steps in all, (most + 1,), and what each layer has then.

    A layer's part, (most + 1,), tells what it has where it and the layers before it take no more than so many steps.
    """
    least, chosen = torch.zeros(most + 1, dtype=torch.float64), []
    for costs in options:
        best, picked = torch.full_like(least, math.inf), torch.zeros(most + 1, dtype=torch.int64)
        for size, cost in sorted(costs.items()):
            taken = size // step
            if taken <= most:
                total = least[: most + 1 - taken] + cost
                better = total < best[taken:]
                best[taken:] = torch.where(better, total, best[taken:])
                picked[taken:] = torch.where(better, size, picked[taken:])
        least = best
        chosen.append(picked)
    return least, chosen


def _chosen(table: tuple[Tensor, list[Tensor]], step: int, total: int) -> list[int]:
    """Walk back through the layers from so many steps in all, and return what each layer has."""
    sizes = []
    for picked in reversed(table[1]):
        sizes.append(int(picked[total]))
        total -= sizes[-1] // step
    return sizes[::-1]
