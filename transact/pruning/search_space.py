"""Which dimensions a model may be cut to, and which of them remove a given share of its parameters."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from transact.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiples:
    """Granularity of the cut dimensions; an uncut dimension need not be a multiple.

    Attributes:
        head_dim: what ``head_dim`` is a multiple of.
        intermediate_size: likewise.
        head_dims: the only sizes that heads are cut to; None: any multiple.
        row: what the heads of a layer together are a multiple of, where they are cut.
        num_key_value_heads: what their number is a multiple of, where it is cut.
        keeps_attention: nothing of attention is cut.

    Raises:
        ValueError: a multiple is not positive, or that of ``head_dim`` is odd (dims go in pairs).
    """

    head_dim: int
    intermediate_size: int
    head_dims: tuple[int, ...] | None = None
    row: int = 1
    num_key_value_heads: int = 1
    keeps_attention: bool = False

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"the multiple of head_dim must be even, got {self.head_dim}")
        if self.intermediate_size < 1:
            raise ValueError(f"the multiple of intermediate_size must be positive, got {self.intermediate_size}")

    def head_dims_below(self, high: Geometry) -> list[int]:
        """Return the sizes below that of `high` that its heads may be cut to, ascending."""
        if self.keeps_attention:
            return []
        return [
            head_dim
            for head_dim in range(self.head_dim, high.head_dim, self.head_dim)
            if (self.head_dims is None or head_dim in self.head_dims)
            and high.num_attention_heads * head_dim % self.row == 0
        ]

    def intermediate_sizes_below(self, high: Geometry) -> range:
        """Return the sizes below that of `high` that its MLPs may be cut to, ascending."""
        return range(self.intermediate_size, high.intermediate_size, self.intermediate_size)

    def key_value_heads_below(self, high: Geometry) -> list[int]:
        """Return three quarters and half of the key-value heads of `high`, rounded up to a multiple; descending.

        Only such that the query heads that go along leave a divisor of hidden_size, which stock LLaMA asks for.
        """
        if self.keeps_attention:
            return []
        heads, multiple, per_group = high.num_key_value_heads, self.num_key_value_heads, high.queries_per_key_value_head
        rounded = {math.ceil(heads * share / multiple) * multiple for share in (0.75, 0.5)}
        return sorted(
            (each for each in rounded if each < heads and high.hidden_size % (each * per_group) == 0), reverse=True
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """The dimensions that a model may be cut to.

    Attributes:
        multiples: granularity of the dimensions.
        smallest: no dimension below this one's: the least of each, or the end of the last round.
        largest: no dimension above this one's: the dense model, or the end of the round before.
        cuts_heads: attention loses whole heads instead of dims of every head.
        key_value_heads: numbers of them, descending, that attention may be cut to beside dims of every head.
    """

    multiples: Multiples
    smallest: Geometry
    largest: Geometry
    cuts_heads: bool = False
    key_value_heads: tuple[int, ...] = ()

    @classmethod
    def below(
        cls, largest: Geometry, multiples: Multiples, *, cuts_heads: bool = False, fewer_heads: bool = False
    ) -> SearchSpace:
        """Return the space of all that a model can be cut to.

        fewer_heads: key-value heads may go, with the query heads that share them, beside dims of all.
        """
        counts = multiples.key_value_heads_below(largest) if fewer_heads else []
        smallest = replace(largest, intermediate_size=min(multiples.intermediate_size, largest.intermediate_size))
        if cuts_heads and not multiples.keeps_attention:
            least = min(multiples.num_key_value_heads, largest.num_key_value_heads)
            smallest = replace(smallest, num_attention_heads=least, num_key_value_heads=least)
        elif not cuts_heads:
            heads = [with_key_value_heads(smallest, each) for each in (largest.num_key_value_heads, *counts)]
            sizes = [size for each in heads for size in multiples.head_dims_below(each)]
            smallest = replace(heads[-1], head_dim=min(sizes, default=largest.head_dim))
        return cls(
            multiples=multiples,
            smallest=smallest,
            largest=largest,
            cuts_heads=cuts_heads,
            key_value_heads=tuple(counts),
        )

    def attention_shapes(self) -> list[Geometry]:
        """Return the allowed shapes of attention, most key-value heads first, and of these the widest first."""
        largest, row = self.largest, self.multiples.row
        shapes = self._head_counts() if self.cuts_heads else self._head_dims(largest)
        for count in self.key_value_heads:
            if self.smallest.num_key_value_heads <= count < largest.num_key_value_heads:
                shapes += self._head_dims(with_key_value_heads(largest, count))
        return [each for each in shapes if each == largest or each.num_attention_heads * each.head_dim % row == 0]

    def least(self) -> list[Geometry]:
        """Return each shape of attention with the narrowest MLP."""
        return [replace(each, intermediate_size=self.smallest.intermediate_size) for each in self.attention_shapes()]

    def nearest(self, wanted: float) -> list[Geometry]:
        """Return each shape of attention with the intermediate size that comes nearest to ``wanted`` parameters."""
        bounds = self.smallest.intermediate_size, self.largest.intermediate_size
        return [self._fit_intermediate(shape, wanted, *bounds) for shape in self.attention_shapes()]

    def on_the_way(self, wanted: float, rounds_left: int) -> list[Geometry]:
        """Return candidates that remove something from `largest`, and leave each round left a step to `smallest`.

        With coarse multiples there may be none.
        """
        found, step, end = [], self.multiples.intermediate_size, self.smallest.intermediate_size
        shapes = self.attention_shapes()
        steps = _steps_down(shapes)
        for shape in shapes:
            missing = rounds_left - steps[shape]
            least, most = end, self.largest.intermediate_size
            if missing > 0:  # the first multiple that is so many steps away, or the size that was never cut
                least = min((least + (missing - 1) * step) // step * step + step, most)
                if least <= end + (missing - 1) * step:
                    continue
            if attention_width(shape) == attention_width(self.largest):
                most = (most - 1) // step * step
            if least <= most:
                found.append(self._fit_intermediate(shape, wanted, least, most))
        return found

    def _head_dims(self, high: Geometry) -> list[Geometry]:
        """Return the allowed head dims, largest first: queries and keys suffer most, so ties keep more of them."""
        low = self.smallest.head_dim
        sizes = {head_dim for head_dim in self.multiples.head_dims_below(high) if head_dim >= low}
        return [replace(high, head_dim=head_dim) for head_dim in sorted({*sizes, high.head_dim}, reverse=True)]

    def _head_counts(self) -> list[Geometry]:
        """Return the allowed numbers of heads, most key-value heads first.

        Every group keeps the same number of query heads.
        """
        low, high, multiple = self.smallest, self.largest, self.multiples.num_key_value_heads
        return [
            replace(high, num_key_value_heads=groups, num_attention_heads=groups * per_group)
            for groups in range(high.num_key_value_heads, low.num_key_value_heads - 1, -1)
            if groups == high.num_key_value_heads or groups % multiple == 0
            for per_group in range(high.queries_per_key_value_head, low.queries_per_key_value_head - 1, -1)
        ]

    def _fit_intermediate(self, shape: Geometry, wanted: float, least: int, most: int) -> Geometry:
        """Return a shape with the intermediate size within bounds that brings it nearest to ``wanted`` parameters."""
        surplus = shape.parameters() - wanted
        exact = shape.intermediate_size - surplus / intermediate_parameters(shape, 1)
        snapped = round(exact / self.multiples.intermediate_size) * self.multiples.intermediate_size
        return replace(shape, intermediate_size=min(max(snapped, least), most))


def _steps_down(shapes: Sequence[Geometry]) -> dict[Geometry, int]:
    """Return for each shape how many rounds can each remove something from attention alone: its longest way down."""

    def sizes(shape: Geometry) -> tuple[int, int, int]:
        return shape.num_key_value_heads, shape.queries_per_key_value_head, shape.head_dim

    steps: dict[Geometry, int] = {}
    for shape in sorted(shapes, key=sizes):
        smaller = (count for each, count in steps.items() if all(map(operator.le, sizes(each), sizes(shape))))
        steps[shape] = 1 + max(smaller, default=-1)
    return steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """The share of a model that is to go.

    Attributes:
        parent: the dense model, from which the share is counted.
        remove_fraction: share of all its parameters to remove.
    """

    parent: Geometry
    remove_fraction: float

    @property
    def parameters(self) -> float:
        """The number of parameters that are to stay."""
        return self.parent.parameters() * (1 - self.remove_fraction)

    def tolerance(self, multiples: Multiples) -> int:
        """Return the parameters of one multiple of channels: what misses the aim by no more is equally good."""
        return intermediate_parameters(self.parent, multiples.intermediate_size)


def intermediate_parameters(geometry: Geometry, channels: int) -> int:
    """Return the parameters of so many intermediate channels in all layers: gate, up and down."""
    return 3 * geometry.num_layers * geometry.hidden_size * channels


def attention_width(geometry: Geometry) -> int:
    """Return the number of inner dimensions of attention; its parameters are proportional to it."""
    return (geometry.num_attention_heads + geometry.num_key_value_heads) * geometry.head_dim


def with_key_value_heads(geometry: Geometry, count: int) -> Geometry:
    """Return the geometry with so many key-value heads and the query heads that share them."""
    per_group = geometry.queries_per_key_value_head
    return replace(geometry, num_key_value_heads=count, num_attention_heads=count * per_group)


def reached_fraction(parent: Geometry, child: Geometry) -> float:
    """Return the share of all the parent's parameters, embeddings included, that the child lacks."""
    return 1 - child.parameters() / parent.parameters()


def solve_geometry(removal: Removal, space: SearchSpace) -> Geometry:
    """Find the dimensions that remove what is asked for.

    Attention and MLP lose the same share as nearly as the multiples allow. The total is met within
    one multiple of ``intermediate_size``; where the bounds leave no such choice (an
    ``intermediate_size`` that may not move), it is the nearest possible one.

    Raises:
        ValueError: more is asked than can be removed; the message says how much can.
    """
    least = min(each.parameters() for each in space.least())
    if removal.parameters < least - removal.tolerance(space.multiples) / 2:
        raise ValueError(_unreachable(removal, space))
    return _best(space.nearest(removal.parameters), removal, space, towards=None)


def solve_on_the_way(removal: Removal, space: SearchSpace, rounds_left: int = 0) -> Geometry:
    """Find the dimensions that remove what is asked for, on the straight way to `space.smallest`: the last round's.

    Args:
        rounds_left: how many rounds are to remove something after this one.
    """
    # With coarse multiples the nearest may be the dimensions of the round before, or leave nothing for later rounds.
    possible = space.on_the_way(removal.parameters, rounds_left) or space.nearest(removal.parameters)
    return _best(possible, removal, space, towards=space.smallest)


def _best(candidates: Sequence[Geometry], removal: Removal, space: SearchSpace, towards: Geometry | None) -> Geometry:
    tolerance = removal.tolerance(space.multiples)

    def cost(candidate: Geometry) -> tuple[float, int, int]:
        miss = abs(candidate.parameters() - removal.parameters)
        # Equal shares are of the dims of all heads, unless these are not enough: fewer heads are for splits to measure.
        keeps_heads = towards is None and not space.cuts_heads
        gone = space.largest.num_key_value_heads - candidate.num_key_value_heads if keeps_heads else 0
        # Everything within the tolerance is equally good, so that the balance decides.
        return (0.0 if miss <= tolerance else miss, gone, imbalance(removal.parent, towards, candidate))

    return min(candidates, key=cost)


def splits(removal: Removal, space: SearchSpace) -> list[Geometry]:
    """Return every way to share the same cut between attention and MLP, in the order of `attention_shapes`.

    Raises:
        ValueError: more is asked than can be removed.
    """
    solve_geometry(removal, space)  # raises where it cannot be met
    wanted, tolerance = removal.parameters, removal.tolerance(space.multiples)
    return [each for each in space.nearest(wanted) if abs(each.parameters() - wanted) <= tolerance]


def by_key_value_heads(shapes: Sequence[Geometry]) -> list[list[Geometry]]:
    """Group shapes that stand side by side and have the same number of key-value heads."""
    return [list(line) for _, line in groupby(shapes, key=lambda each: each.num_key_value_heads)]


def solve_rounds(space: SearchSpace, fractions: Sequence[float], final: Geometry | None = None) -> list[Geometry]:
    """Find one geometry for each round; no dimension ever grows again.

    Args:
        space: below the dense model.
        fractions: cumulative fraction of the dense model removed after each round, increasing.
        final: dimensions of the last round where they are given; the earlier rounds then keep
            their relative progress, so that only the ratios among ``fractions`` matter.

    Raises:
        ValueError: the last fraction cannot be reached, or a round would remove nothing.
    """
    parent = space.largest
    last = final or solve_geometry(Removal(parent=parent, remove_fraction=fractions[-1]), space)
    stretch = reached_fraction(parent, last) / fractions[-1] if final else 1.0
    geometries: list[Geometry] = []
    left_space = replace(space, smallest=last)
    for left, fraction in reversed(list(enumerate(reversed(fractions)))):
        if left > 0:
            removal = Removal(parent=parent, remove_fraction=fraction * stretch)
            geometries.append(solve_on_the_way(removal, left_space, rounds_left=left))
            left_space = replace(left_space, largest=geometries[-1])
    geometries.append(last)
    _check_every_round_removes(parent, geometries, space.multiples)
    return geometries


def explicit_geometry(parent: Geometry, head_dim: int | None, intermediate_size: int | None) -> Geometry:
    """Return the parent with dimensions given by hand; ``None`` leaves a dimension as it is.

    Raises:
        ValueError: a dimension is out of range, ``head_dim`` is odd, or nothing is cut.
    """
    if head_dim is None:
        head_dim = parent.head_dim
    if intermediate_size is None:
        intermediate_size = parent.intermediate_size
    if not 2 <= head_dim <= parent.head_dim or head_dim % 2:
        raise ValueError(f"prune.head_dim is {head_dim}; allowed: even, from 2 to {parent.head_dim}")
    if not 1 <= intermediate_size <= parent.intermediate_size:
        raise ValueError(
            f"prune.intermediate_size is {intermediate_size}; allowed: from 1 to {parent.intermediate_size}"
        )
    child = replace(parent, head_dim=head_dim, intermediate_size=intermediate_size)
    if child == parent:
        raise ValueError(
            f"prune.head_dim is {head_dim} and prune.intermediate_size is {intermediate_size}; "
            f"allowed: at least one of them below the parent's"
        )
    return child


def imbalance(parent: Geometry, floor: Geometry | None, candidate: Geometry) -> int:
    """Return the distance from the straight line of cuts parent -> floor (or -> nothing): a cross product.

    Without a floor, it is zero where attention and MLP keep exactly the same share.
    """
    floor_width, floor_intermediate = (attention_width(floor), floor.intermediate_size) if floor else (0, 0)
    width_cut = attention_width(parent) - attention_width(candidate)
    channels_cut = parent.intermediate_size - candidate.intermediate_size
    return abs(
        width_cut * (parent.intermediate_size - floor_intermediate)
        - channels_cut * (attention_width(parent) - floor_width)
    )


def _unreachable(removal: Removal, space: SearchSpace) -> str:
    parent = removal.parent
    fixed = 1 - parent.transitional_parameters() / parent.parameters()
    return (
        f"prune.remove_fraction={removal.remove_fraction:g} cannot be reached: at most "
        f"{max(reached_fraction(parent, each) for each in space.least()):.4f} of this model can be removed with "
        f"{attention_words(parent, space)} and intermediate_size a multiple of "
        f"{space.multiples.intermediate_size} (prune.target and prune.multiple decide that); embeddings and norms, "
        f"{fixed:.4f} of it, are never cut"
    )


def attention_words(parent: Geometry, space: SearchSpace) -> str:
    """Describe what attention may be cut to, for a message."""
    multiples = space.multiples
    if space.cuts_heads and not multiples.keeps_attention:
        return "whole heads"
    shapes = space.attention_shapes()
    words, sizes = [], sorted({each.head_dim for each in shapes} - {parent.head_dim})
    heads = sorted({each.num_key_value_heads for each in shapes} - {parent.num_key_value_heads})
    if sizes and multiples.head_dims is None and multiples.row == 1:
        words.append(f"head_dim a multiple of {multiples.head_dim}")
    elif sizes:
        words.append(f"head_dim {', '.join(map(str, sizes))} or {parent.head_dim}")
    if heads:
        words.append(f"{', '.join(map(str, heads))} or {parent.num_key_value_heads} key-value heads")
    return ", ".join(words) or "attention as it is"


def _check_every_round_removes(parent: Geometry, geometries: Sequence[Geometry], multiples: Multiples) -> None:
    sizes = [geometry.parameters() for geometry in (parent, *geometries)]
    for turn, (before, after) in enumerate(pairwise(sizes), start=1):
        if after >= before:
            raise ValueError(
                f"round {turn} of {len(geometries)} would remove nothing: use fewer rounds, a "
                f"larger cut, or multiples below head_dim {multiples.head_dim} and "
                f"intermediate_size {multiples.intermediate_size}"
            )
