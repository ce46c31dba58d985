"""Which dimensions a model may be cut to, and which of them remove a given share of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from transact.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiples:
    """Granularity of the cut dimensions; an uncut dimension need not be a multiple.

    Attributes:
        head_dim: what ``head_dim`` is a multiple of.
        intermediate_size: likewise.
        head_dims: the only sizes that heads are cut to; None: any multiple.
        row: what the heads of a layer together are a multiple of, where their ``head_dim`` is cut.
        keeps_attention: nothing of attention is cut.

    Raises:
        ValueError: a multiple is not positive, or that of ``head_dim`` is odd (dims go in pairs).
    """

    head_dim: int
    intermediate_size: int
    head_dims: tuple[int, ...] | None = None
    row: int = 1
    keeps_attention: bool = False

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"the multiple of head_dim must be even, got {self.head_dim}")
        if self.intermediate_size < 1:
            raise ValueError(f"the multiple of intermediate_size must be positive, got {self.intermediate_size}")

    def head_dims_below(self, high: Geometry) -> list[int]:
        """Sizes that its heads may be cut to, ascending."""
        if self.keeps_attention:
            return []
        return [
            head_dim
            for head_dim in range(self.head_dim, high.head_dim, self.head_dim)
            if (self.head_dims is None or head_dim in self.head_dims)
            and high.num_attention_heads * head_dim % self.row == 0
        ]

    def intermediate_sizes_below(self, high: Geometry) -> range:
        """Sizes that its MLPs may be cut to, ascending."""
        return range(self.intermediate_size, high.intermediate_size, self.intermediate_size)

    def smallest(self, high: Geometry, *, heads: bool) -> Geometry:
        """The most that can be cut: to one head, or the narrowest heads, and one multiple of channels."""
        smallest = replace(high, intermediate_size=min(self.intermediate_size, high.intermediate_size))
        if self.keeps_attention:
            return smallest
        if heads:
            return replace(smallest, num_attention_heads=1, num_key_value_heads=1)
        return replace(smallest, head_dim=min(self.head_dims_below(high), default=high.head_dim))


def attention_shapes(multiples: Multiples, low: Geometry, high: Geometry, *, heads: bool) -> list[Geometry]:
    """Allowed shapes of attention, from most kept to least."""
    return _head_counts(low, high) if heads else _head_dims(low, high, multiples)


def nearest_candidates(
    shapes: Sequence[Geometry], wanted: float, multiples: Multiples, low: Geometry, high: Geometry
) -> list[Geometry]:
    """For each shape of attention the intermediate size that comes nearest to ``wanted`` parameters."""
    bounds = low.intermediate_size, high.intermediate_size
    return [_fit_intermediate(shape, wanted, multiples, *bounds) for shape in shapes]


def candidates_on_the_way(
    shapes: Sequence[Geometry], wanted: float, multiples: Multiples, low: Geometry, high: Geometry, rounds_left: int
) -> list[Geometry]:
    """Candidates that remove something from ``high``, and leave as many steps down to ``low`` as there are rounds."""
    found, step = [], multiples.intermediate_size
    for shape in shapes:
        missing = rounds_left - _attention_steps(shape, low, multiples)
        least, most = low.intermediate_size, high.intermediate_size
        if missing > 0:  # the first multiple that is so many steps away, or the size that was never cut
            least = min((least + (missing - 1) * step) // step * step + step, most)
            if least <= low.intermediate_size + (missing - 1) * step:
                continue
        if attention_width(shape) == attention_width(high):
            most = (most - 1) // step * step
        if least <= most:
            found.append(_fit_intermediate(shape, wanted, multiples, least, most))
    return found


def _attention_steps(high: Geometry, low: Geometry, multiples: Multiples) -> int:
    """How many rounds can each take something from attention alone."""
    groups = high.num_key_value_heads - low.num_key_value_heads
    queries = high.queries_per_key_value_head - low.queries_per_key_value_head
    return groups + queries + len(_head_dims(low, high, multiples)) - 1


def _head_dims(low: Geometry, high: Geometry, multiples: Multiples) -> list[Geometry]:
    """Allowed head dims, largest first: queries and keys suffer most, so ties keep more of them."""
    between = (head_dim for head_dim in multiples.head_dims_below(high) if head_dim > low.head_dim)
    return [replace(high, head_dim=head_dim) for head_dim in sorted({low.head_dim, *between, high.head_dim})[::-1]]


def _head_counts(low: Geometry, high: Geometry) -> list[Geometry]:
    """Allowed numbers of heads, most key-value heads first; every group keeps the same number of query heads."""
    return [
        replace(high, num_key_value_heads=groups, num_attention_heads=groups * per_group)
        for groups in range(high.num_key_value_heads, low.num_key_value_heads - 1, -1)
        for per_group in range(high.queries_per_key_value_head, low.queries_per_key_value_head - 1, -1)
    ]


def _fit_intermediate(candidate: Geometry, wanted: float, multiples: Multiples, least: int, most: int) -> Geometry:
    """The intermediate size within bounds that brings the candidate nearest to ``wanted``."""
    surplus = candidate.parameters() - wanted
    exact = candidate.intermediate_size - surplus / intermediate_parameters(candidate, 1)
    snapped = round(exact / multiples.intermediate_size) * multiples.intermediate_size
    return replace(candidate, intermediate_size=min(max(snapped, least), most))


def intermediate_parameters(geometry: Geometry, channels: int) -> int:
    """Parameters of so many intermediate channels in all layers: gate, up and down."""
    return 3 * geometry.num_layers * geometry.hidden_size * channels


def attention_width(geometry: Geometry) -> int:
    """Inner dimensions of attention; its parameters are proportional to them."""
    return (geometry.num_attention_heads + geometry.num_key_value_heads) * geometry.head_dim


def reached_fraction(parent: Geometry, child: Geometry) -> float:
    """Share of all the parent's parameters, embeddings included, that the child lacks."""
    return 1 - child.parameters() / parent.parameters()


def solve_geometry(
    parent: Geometry,
    remove_fraction: float,
    multiples: Multiples,
    ceiling: Geometry | None = None,
    floor: Geometry | None = None,
    *,
    heads: bool = False,
    rounds_left: int = 0,
) -> Geometry:
    """Dimensions that remove ``remove_fraction`` of the parent's parameters.

    Attention and MLP lose the same share as nearly as the multiples allow. The total is met within
    one multiple of ``intermediate_size``; where the bounds leave no such choice (an
    ``intermediate_size`` that may not move), it is the nearest possible one.

    Args:
        parent: the dense model.
        remove_fraction: share of all parameters to remove, counted from the parent.
        multiples: granularity of the dimensions.
        ceiling: no dimension above this one's: the previous round. Default: the parent.
        floor: no dimension below this one's, and the straight way towards it is preferred: the
            last round. Default: one multiple each.
        heads: attention loses whole heads instead of dims of every head.
        rounds_left: with a floor, how many rounds are to remove something on the way there after this one.

    Raises:
        ValueError: more is asked than can be removed; the message says how much can.
    """
    high = ceiling or parent
    low = floor or multiples.smallest(high, heads=heads)
    tolerance = intermediate_parameters(parent, multiples.intermediate_size)
    wanted = parent.parameters() * (1 - remove_fraction)
    # With a floor the end is known to be within reach, and this round stops there at the latest.
    if floor is None and wanted < low.parameters() - tolerance / 2:
        raise ValueError(_unreachable(parent, remove_fraction, low, multiples, heads=heads))

    def cost(candidate: Geometry) -> tuple[float, int]:
        miss = abs(candidate.parameters() - wanted)
        # Everything within the tolerance is equally good, so that the balance decides.
        return (0.0 if miss <= tolerance else miss, _imbalance(parent, floor, candidate))

    shapes = attention_shapes(multiples, low, high, heads=heads)
    # With coarse multiples what comes nearest may be the round before, or leave nothing for those after it.
    possible = [] if floor is None else candidates_on_the_way(shapes, wanted, multiples, low, high, rounds_left)
    return min(possible or nearest_candidates(shapes, wanted, multiples, low, high), key=cost)


def splits(parent: Geometry, remove_fraction: float, multiples: Multiples, *, heads: bool = False) -> list[Geometry]:
    """Every way to share the same cut between attention and MLP, from most attention kept to least.

    Raises:
        ValueError: more is asked than can be removed.
    """
    solve_geometry(parent, remove_fraction, multiples, heads=heads)  # says what is wrong, if anything is
    tolerance = intermediate_parameters(parent, multiples.intermediate_size)
    wanted = parent.parameters() * (1 - remove_fraction)
    low = multiples.smallest(parent, heads=heads)
    candidates = nearest_candidates(
        attention_shapes(multiples, low, parent, heads=heads), wanted, multiples, low, parent
    )
    return [each for each in candidates if abs(each.parameters() - wanted) <= tolerance]


def solve_rounds(
    parent: Geometry,
    fractions: Sequence[float],
    multiples: Multiples,
    final: Geometry | None = None,
    *,
    heads: bool = False,
) -> list[Geometry]:
    """One geometry for each round; no dimension ever grows again.

    Args:
        parent: the dense model.
        fractions: cumulative fraction removed after each round, increasing.
        multiples: granularity of the dimensions.
        final: dimensions of the last round where they are given; the earlier rounds then keep
            their relative progress, so that only the ratios among ``fractions`` matter.
        heads: attention loses whole heads instead of dims of every head.

    Raises:
        ValueError: the last fraction cannot be reached, or a round would remove nothing.
    """
    last = final or solve_geometry(parent, fractions[-1], multiples, heads=heads)
    stretch = reached_fraction(parent, last) / fractions[-1] if final else 1.0
    geometries: list[Geometry] = []
    previous = parent
    for left, fraction in reversed(list(enumerate(reversed(fractions)))):
        if left > 0:
            previous = solve_geometry(
                parent, fraction * stretch, multiples, previous, last, heads=heads, rounds_left=left
            )
            geometries.append(previous)
    geometries.append(last)
    _check_every_round_removes(parent, geometries, multiples)
    return geometries


def explicit_geometry(parent: Geometry, head_dim: int | None, intermediate_size: int | None) -> Geometry:
    """The parent with dimensions given by hand; ``None`` leaves a dimension as it is.

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


def _imbalance(parent: Geometry, floor: Geometry | None, candidate: Geometry) -> int:
    """Distance from the straight line of cuts parent -> floor (or -> nothing): a cross product.

    Without a floor, it is zero where attention and MLP keep exactly the same share.
    """
    floor_width, floor_intermediate = (attention_width(floor), floor.intermediate_size) if floor else (0, 0)
    width_cut = attention_width(parent) - attention_width(candidate)
    channels_cut = parent.intermediate_size - candidate.intermediate_size
    return abs(
        width_cut * (parent.intermediate_size - floor_intermediate)
        - channels_cut * (attention_width(parent) - floor_width)
    )


def _unreachable(parent: Geometry, remove_fraction: float, low: Geometry, multiples: Multiples, *, heads: bool) -> str:
    fixed = 1 - parent.transitional_parameters() / parent.parameters()
    return (
        f"prune.remove_fraction={remove_fraction:g} cannot be reached: at most "
        f"{reached_fraction(parent, low):.4f} of this model can be removed with "
        f"{_attention_words(parent, multiples, heads=heads)} and intermediate_size a multiple of "
        f"{multiples.intermediate_size} (prune.target and prune.multiple decide that); embeddings and norms, "
        f"{fixed:.4f} of it, are never cut"
    )


def _attention_words(parent: Geometry, multiples: Multiples, *, heads: bool) -> str:
    """What may become of attention."""
    allowed = multiples.head_dims_below(parent)
    if multiples.keeps_attention or not (heads or allowed):
        return "attention as it is"
    if heads:
        return "whole heads"
    if multiples.head_dims is None and multiples.row == 1:
        return f"head_dim a multiple of {multiples.head_dim}"
    return f"head_dim {', '.join(map(str, allowed))} or {parent.head_dim}"


def _check_every_round_removes(parent: Geometry, geometries: Sequence[Geometry], multiples: Multiples) -> None:
    sizes = [geometry.parameters() for geometry in (parent, *geometries)]
    for turn, (before, after) in enumerate(pairwise(sizes), start=1):
        if after >= before:
            raise ValueError(
                f"round {turn} of {len(geometries)} would remove nothing: use fewer rounds, a "
                f"larger remove_fraction, or multiples below head_dim {multiples.head_dim} and "
                f"intermediate_size {multiples.intermediate_size}"
            )
