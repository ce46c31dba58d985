"""Search widths for every layer by measuring: an allocation, then single moves of one layer and exchanges of them.

Every layer in turn is made narrower and measured. From that and from the errors of its refit follows what each width
would cost; the exact allocation of these costs is measured, and where it is better the search goes on from it.

A move makes one layer's MLP a step wider or narrower, or gives it a key-value head more or less. All of them are
measured from the best shape so far. An exchange then takes from the layers that miss it least and gives to those that
gain most, as many moves at a time as turn out to help; from its result all moves are measured again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.allocation import allocate, expected_costs
from transact.pruning.limits import Bound

CHANNELS, HEADS = "intermediate_size", "num_key_value_heads"
# Dimension -> of each layer the relative error of its refit for every size, (largest + 1,), as `nested_errors`.
Errors = Mapping[str, Sequence[Tensor]]
FIRST_STEP = 1 / 5  # of the MLP's width at the start
TRUSTS = (0.7, 0.5)  # in what was measured of a single layer: allocations that are tried
ALLOCATED_WIDTHS = 256  # of a layer, at most, of which an allocation chooses
DIMINISHING = 2.0  # of a layer's moves in one exchange the next is expected to gain so much less, or to cost more
PATIENCE = 2  # exchanges of growing length in a row that bring nothing, after which longer ones are not tried


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeSpace:
    """The shapes that a search may reach.

    Attributes:
        start: the dimensions that it begins with.
        bounds: what shapes may take at most, which the start keeps to.
        largest: no layer is wider than those of this model: the one that is cut.
        multiple: what the width of an MLP is a multiple of.
        row: what the query heads of a layer together are a multiple of, where some of them go.
        meets: whether a shape keeps to a limit that is no `Bound`, such as a latency; the start does.
    """

    start: Geometry
    bounds: tuple[Bound, ...]
    largest: Geometry
    multiple: int
    row: int = 1
    meets: Callable[[Geometry], bool] = lambda shape: True

    def allows(self, shape: Geometry) -> bool:
        """Return whether a shape takes no more than it may."""
        return all(bound.admits(shape) for bound in self.bounds) and self.meets(shape)

    def moved(self, shape: Geometry, layer: int, dimension: str, by: int) -> Geometry | None:
        """Return a shape with one width of one layer changed; None where it cannot be."""
        most, multiple = getattr(self.largest, dimension), self.multiple if dimension == CHANNELS else 1
        widths = list(shape.widths())
        before = getattr(widths[layer], dimension)
        after = min(before + by, most)
        if after < most:  # the width that was never cut need not be a multiple
            after -= after % multiple
        if after < multiple or after == before:
            return None
        if dimension == HEADS and after < most and self._row(shape, after) % self.row:
            return None
        widths[layer] = replace(widths[layer], **{dimension: after})
        return shape.with_layers(widths)

    def sizes(self, dimension: str) -> list[int]:
        """Return what an allocation may give a layer: numbers of heads, or widths, of very wide layers not all."""
        most = getattr(self.largest, dimension)
        if dimension == HEADS:
            return [each for each in range(1, most + 1) if each == most or not self._row(self.start, each) % self.row]
        step = self.multiple * math.ceil(most / (self.multiple * ALLOCATED_WIDTHS))
        return list(range(step, most + 1, step))

    @staticmethod
    def _row(shape: Geometry, heads: int) -> int:
        return heads * shape.queries_per_key_value_head * shape.head_dim

    def filled(self, shape: Geometry, layer: int) -> Geometry:
        """Return a shape with one layer's MLP widened, by as many multiples as are allowed."""
        wider = self.moved(shape, layer, CHANNELS, self.multiple)
        while wider is not None and self.allows(wider):
            shape, wider = wider, self.moved(wider, layer, CHANNELS, self.multiple)
        return shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A change of one width of one layer, and what it was measured to do.

    Attributes:
        by: channels or heads; below zero they go.
        gain: by how much the loss falls, for each parameter that it adds or takes; below zero the loss rises.
    """

    layer: int
    dimension: str
    by: int
    gain: float


class Losses:
    """Measured losses of shapes: each is measured once, also where moves of other steps meet it again."""

    def __init__(self, measure: Callable[[Geometry], float], evaluations: int) -> None:
        self._measure, self._evaluations = measure, evaluations
        self._found: dict[Geometry, float] = {}

    def __call__(self, shape: Geometry) -> float:
        if shape not in self._found:
            loss = self._measure(shape)
            self._found[shape] = math.inf if math.isnan(loss) else loss
        return self._found[shape]

    def left_after(self, shapes: Iterable[Geometry] = ()) -> int:
        """Return how many more may be measured after these; below zero these are too many."""
        return self._evaluations - len(self._found.keys() | set(shapes))


def search_shapes(
    space: ShapeSpace, measure: Callable[[Geometry], float], evaluations: int, errors: Errors
) -> tuple[Geometry, float]:
    """Return the shape that the search ends with, and its loss, which is never above that of the start.

    Args:
        measure: the loss of a shape; the lower the better, infinite or not a number: of no use.
        evaluations: shapes to measure, at most; no round of moves is begun that would not end within them, and of what
            is left at the end another allocation is made.
        errors: from which allocations follow.
    """
    losses = Losses(measure, evaluations)
    step = max(space.multiple, round(FIRST_STEP * space.start.intermediate_size / space.multiple) * space.multiple)
    losses(space.start)
    best = _best_allocation(space, losses, errors, space.start, step)
    while True:
        possible = list(_possible_moves(space, best, step))
        left = losses.left_after(shape for _, shape in possible)
        if left <= 0:
            best = _best_allocation(space, losses, errors, best, step)
            return best, losses(best)
        moves = [_measured(losses, move, best, shape) for move, shape in possible]
        found = _best_exchange(space, losses, best, moves, min(left, len(possible)))
        if found is not None and losses(found) < losses(best):
            best = found
        elif step > space.multiple:
            step = max(space.multiple, step // 2 // space.multiple * space.multiple)
        else:
            return best, losses(best)


def _best_allocation(space: ShapeSpace, losses: Losses, errors: Errors, shape: Geometry, step: int) -> Geometry:
    """Measure a shape with every layer narrower in turn; return the best of it and of the allocations that follow.

    It stays where that takes more shapes than may be measured. Allocations that are too slow are left out.
    """
    narrower = [(move, moved) for move, moved in _possible_moves(space, shape, step) if move.by < 0]
    if losses.left_after(moved for _, moved in narrower) < len(TRUSTS):
        return shape
    rises: dict[str, dict[int, tuple[int, float]]] = {CHANNELS: {}, HEADS: {}}
    for move, moved in narrower:
        size = getattr(moved.widths()[move.layer], move.dimension)
        rises[move.dimension][move.layer] = size, losses(moved) - losses(shape)
    found = []
    for trust in TRUSTS:
        channels, heads = (
            expected_costs(
                space.sizes(dimension),
                errors[dimension],
                [getattr(each, dimension) for each in shape.widths()],
                rises[dimension],
                trust,
            )
            for dimension in (CHANNELS, HEADS)
        )
        with suppress(ValueError):  # where no cost is known, widths stay, and rounding may find them too large
            found.append(allocate(space.start, channels, heads, space.bounds))
    return min([shape, *filter(space.allows, found)], key=losses)


def _possible_moves(space: ShapeSpace, shape: Geometry, step: int) -> Iterator[tuple[Move, Geometry]]:
    """Yield every move of one layer, not measured yet, and the shape that it leads to, which may not be allowed."""
    for dimension, size in ((CHANNELS, step), (HEADS, 1)):
        for layer in range(shape.num_layers):
            for sign in (1, -1):
                # Rows of some lengths take several heads at a time.
                most = getattr(space.largest, dimension) if dimension == HEADS else 1
                steps = (sign * size * count for count in range(1, most + 1))
                tried = ((by, space.moved(shape, layer, dimension, by)) for by in steps)
                by, moved = next(((by, moved) for by, moved in tried if moved is not None), (0, None))
                if moved is not None:
                    yield Move(layer=layer, dimension=dimension, by=by, gain=0.0), moved


def _measured(losses: Losses, move: Move, shape: Geometry, moved: Geometry) -> Move:
    size = abs(moved.parameters() - shape.parameters())
    return replace(move, gain=(losses(shape) - losses(moved)) / size)


def _best_exchange(
    space: ShapeSpace, losses: Losses, shape: Geometry, moves: Sequence[Move], most: int
) -> Geometry | None:
    """Return the best of the exchanges of growing length, of which at most `most` are measured."""
    found, in_vain = None, 0
    for exchanged in islice(_of_growing_length(exchanges(space, shape, moves)), most):
        if in_vain == PATIENCE:
            break
        is_better = losses(exchanged) < (math.inf if found is None else losses(found))
        in_vain = 0 if is_better else in_vain + 1
        found = exchanged if is_better else found
    return found


def _of_growing_length(steps: Iterator[Geometry]) -> Iterator[Geometry]:
    """Yield the steps number 1, 2, 3, 4, 6, 8, 12, ... and the last; no more are made than are asked for."""
    wanted, last, count = 1, None, 0
    for count, step in enumerate(steps, start=1):
        last = step
        if count == wanted:
            yield step
            wanted, last = count + max(1, 2 ** (count.bit_length() - 2)), None
    if last is not None:
        yield last


def exchanges(space: ShapeSpace, shape: Geometry, moves: Sequence[Move]) -> Iterator[Geometry]:
    """Yield shapes that differ from one by more and more of the moves, each within what is allowed.

    The widening that gains most comes first, and for it the narrowings that cost least make room, while they cost less
    than it gains. No layer's width goes both ways.
    """
    wider = [each for each in moves if each.by > 0 and each.gain > 0]
    narrower = [each for each in moves if each.by < 0]
    uses: Counter[Move] = Counter()

    def gain(move: Move) -> float:
        return move.gain / DIMINISHING ** uses[move]

    def cost(move: Move) -> float:
        # That the first of them lowers the loss says nothing of the next ones.
        return -move.gain if not uses[move] else abs(move.gain) * DIMINISHING ** uses[move]

    def usable(move: Move, current: Geometry) -> bool:
        opposite = any(
            uses[other] and (other.layer, other.dimension) == (move.layer, move.dimension) and other.by * move.by < 0
            for other in moves
        )
        return not opposite and space.moved(current, move.layer, move.dimension, move.by) is not None

    while True:
        best = max((each for each in wider if usable(each, shape)), key=gain, default=None)
        if best is None:
            return
        larger = _after(space, shape, best)
        while not space.allows(larger):
            possible = [
                each
                for each in narrower
                if usable(each, larger) and (each.layer, each.dimension) != (best.layer, best.dimension)
            ]
            least = min(possible, key=cost, default=None)
            if least is None or cost(least) >= gain(best):
                return
            larger = _after(space, larger, least)
            uses[least] += 1
        uses[best] += 1
        shape = larger
        yield space.filled(shape, best.layer) if best.dimension == CHANNELS else shape


def _after(space: ShapeSpace, shape: Geometry, move: Move) -> Geometry:
    moved = space.moved(shape, move.layer, move.dimension, move.by)
    assert moved is not None
    return moved
