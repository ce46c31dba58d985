"""Limits of the machine that serves a model: which dimensions meet them, and what a model takes of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transact.geometry import Geometry
from transact.pruning.latency import LatencyTable
from transact.pruning.search_space import SearchSpace, attention_width, attention_words, imbalance


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How a model is served.

    Attributes:
        bits_per_weight: of the file that is served, on average.
        bits_per_cached: of an element of the KV cache.
        context_tokens: in the KV cache, of each sequence.
        batch_size: sequences at a time.
        latency: of the machine; None where it is not known.
    """

    bits_per_weight: float = 16
    bits_per_cached: float = 16
    context_tokens: int = 4096
    batch_size: int = 1
    latency: LatencyTable | None = None

    def figures(self, geometry: Geometry) -> dict[str, float]:
        """Return what a model takes, by the names of prune.budget. No figure grows where a dimension is cut."""
        cached = geometry.kv_bytes_per_token(bytes_per_element=1) * self.bits_per_cached / 8
        weights = geometry.parameters() * self.bits_per_weight / 8
        return {
            "parameters": geometry.parameters(),
            "kv_bytes_per_token": cached,
            "weight_bytes": weights,
            "memory_bytes": weights + cached * self.context_tokens * self.batch_size,
            **({} if self.latency is None else {"latency_ms": self.latency.milliseconds(geometry)}),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a cut model may take at most.

    Attributes:
        parent: the dense model.
        serving: how both are served.
        asked: limits by the names of `Serving.figures`; up to 1 a share of what the parent takes.
    """

    parent: Geometry
    serving: Serving
    asked: Mapping[str, float]

    def most(self, name: str) -> float:
        """Return a limit in its own unit."""
        asked = self.asked[name]
        return asked if asked > 1 else asked * self.serving.figures(self.parent)[name]

    def figure(self, name: str, geometry: Geometry) -> float:
        """Return what a model takes of what is limited."""
        return self.serving.figures(geometry)[name]

    def broken(self, geometry: Geometry) -> list[str]:
        """Return the names of the limits that a model exceeds."""
        figures = self.serving.figures(geometry)
        return [name for name in self.asked if figures[name] > self.most(name)]

    def compared(self, geometry: Geometry) -> dict[str, dict[str, float]]:
        """Return for every limit "asked", "most" in its unit, what the model has "reached", and the "dense" one has."""
        dense, reached = self.serving.figures(self.parent), self.serving.figures(geometry)
        return {
            name: {"asked": asked, "most": self.most(name), "reached": reached[name], "dense": dense[name]}
            for name, asked in self.asked.items()
        }


def within(limits: Limits, space: SearchSpace) -> list[Geometry]:
    """Return the dimensions that meet all limits and of which none can be larger, in the order of `attention_shapes`.

    Raises:
        ValueError: as `widest_of_each`.
    """
    found = widest_of_each(limits, space)
    return [each for each in found if not any(_is_larger(other, each) for other in found)]


def widest_of_each(limits: Limits, space: SearchSpace) -> list[Geometry]:
    """Return each shape of attention that meets all limits with the widest MLP that does.

    Raises:
        ValueError: the least that the space has exceeds a limit, or the dense model meets all of them.
    """
    if not limits.broken(space.largest):
        raise ValueError(f"prune.budget cuts nothing: the model as it is has {_all_words(limits, space.largest)}")
    if all(map(limits.broken, space.least())):
        raise ValueError(_unreachable(limits, space))
    sizes = [*space.multiples.intermediate_sizes_below(space.largest), space.largest.intermediate_size]
    found = []
    for shape in space.attention_shapes():
        possible = [replace(shape, intermediate_size=size) for size in sizes]
        fitting = bisect_right(possible, False, key=lambda each: bool(limits.broken(each)))
        found += possible[max(0, fitting - 1) : fitting]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """What a model may take at most of something that every head and every channel adds the same to.

    Attributes:
        size: what a model takes, such as its parameters.
        most: in the same unit.
    """

    size: Callable[[Geometry], float]
    most: float

    def admits(self, geometry: Geometry) -> bool:
        return self.size(geometry) <= self.most


PARAMETERS, KV_BYTES = Geometry.parameters, Geometry.kv_bytes_per_token
# The limits that count these alone; memory counts both, and a latency is no sum over heads and channels.
LIMITS_OF = {PARAMETERS: {"parameters", "weight_bytes"}, KV_BYTES: {"kv_bytes_per_token"}}


def shape_bounds(start: Geometry, limits: Limits | None = None, ends: Sequence[Geometry] = ()) -> tuple[Bound, ...]:
    """Return what shapes with widths for every layer may take: what was asked for, and not what was not.

    Parameters and KV bytes that no limit counts stay within those of the start. Memory lets one of them grow while the
    other shrinks, but not beyond what one of the possible uniform cuts takes, which is what a run is prepared for.

    Args:
        ends: all uniform cuts that the search may begin with.
    """
    asked = limits.asked if limits is not None else {}
    found = []
    for size, names in LIMITS_OF.items():
        if not names & asked.keys():
            most = max(map(size, (start, *ends))) if "memory_bytes" in asked else size(start)
            found.append(Bound(size=size, most=most))
    if limits is not None:
        linear = (name for name in asked if name != "latency_ms")
        found += [Bound(size=partial(limits.figure, name), most=limits.most(name)) for name in linear]
    return tuple(found)


def most_balanced(limits: Limits, candidates: list[Geometry]) -> Geometry:
    """Return the dimensions where attention and MLP lose the most equal shares; of equal ones the first."""
    return min(candidates, key=lambda each: imbalance(limits.parent, None, each))


def limit_words(name: str, compared: Mapping[str, Any]) -> str:
    """Return a limit and what was reached, in one line."""
    reached, most, dense = (limit_figure(name, compared[each]) for each in ("reached", "most", "dense"))
    share = f" ({compared['asked']:g} of the parent's {dense})" if compared["asked"] <= 1 else ""
    return f"prune.budget.{name}: {reached} of at most {most}{share}"


def limit_figure(name: str, value: float) -> str:
    """Return a figure in the unit of its limit: whole numbers, but of milliseconds two digits more."""
    return f"{value:,.2f}" if name == "latency_ms" else f"{value:,.0f}"


CUT_DIMENSIONS = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")


def _is_larger(one: Geometry, other: Geometry) -> bool:
    """Return whether no dimension is below that of the other, and one is above it."""
    return one != other and all(getattr(one, name) >= getattr(other, name) for name in CUT_DIMENSIONS)


def _all_words(limits: Limits, geometry: Geometry) -> str:
    return "; ".join(limit_words(name, each) for name, each in limits.compared(geometry).items())


def _unreachable(limits: Limits, space: SearchSpace) -> str:
    smallest = min(space.least(), key=attention_width)  # no figure of another one is below its
    name = limits.broken(smallest)[0]
    least, dense = (limits.serving.figures(each)[name] for each in (smallest, limits.parent))
    least_words, dense_words = (limit_figure(name, each) for each in (least, dense))
    return (
        f"prune.budget.{name}={limits.asked[name]:g} cannot be met: the least is {least_words}, {least / dense:.4f} of "
        f"the parent's {dense_words}, with {attention_words(limits.parent, space)} and intermediate_size a multiple of "
        f"{space.multiples.intermediate_size} (prune.target and prune.multiple decide that; prune.shapes=layers begins "
        "with such a cut too)"
    )
