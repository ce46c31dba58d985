"""Dimensions that a cut may end with, and of each shape of attention the size of the MLP that meets a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
