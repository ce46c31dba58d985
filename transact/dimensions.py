"""Which dimensions a configuration asks for: after each round, and in the splits that are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from transact.config.pruning import BudgetConfig, PruneConfig
from transact.errors import one_line
from transact.files import read_json
from transact.geometry import Geometry
from transact.pruning.latency import LatencyTable
from transact.pruning.limits import Limits, Serving, most_balanced, widest_of_each, within
from transact.pruning.schedule import remove_fractions
from transact.pruning.search_space import (
    Removal,
    SearchSpace,
    by_key_value_heads,
    explicit_geometry,
    reached_fraction,
    solve_rounds,
    splits,
)
from transact.pruning.targets import multiples_for


def geometries(
    config: PruneConfig, parent: Geometry, final: Geometry | None = None
) -> tuple[list[Geometry], list[float]]:
    """Return the dimensions after each round, and the cumulative fraction that each round was asked for.

    Args:
        final: dimensions after the last round where a measured split has chosen them.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    final, total = final or _asked_for(config, parent), config.remove_fraction
    if total is None:
        assert final is not None
        total = reached_fraction(parent, final)
    fractions = remove_fractions(total, config.rounds, config.schedule, config.round_shares)
    return solve_rounds(search_space(config, parent), fractions, final), fractions


def _asked_for(config: PruneConfig, parent: Geometry) -> Geometry | None:
    """Return the dimensions after the last round where they follow from the request; None where a share is removed."""
    limits = limits_of(config, parent)
    if config.remove_fraction is None and limits is None:
        found = explicit_geometry(parent, config.head_dim, config.intermediate_size)
        _check_suits(config, parent, found)
        return found
    if config.head_dim is not None:
        return _with_head_dim(config, parent, config.head_dim)
    return None if limits is None else most_balanced(limits, _by_heads(config, _measurable(config, parent))[0])


def limits_of(config: PruneConfig, parent: Geometry) -> Limits | None:
    """Return the limits of prune.budget; None without one.

    Raises:
        ValueError: the table of latencies cannot be read, or is of another model.
    """
    budget, asked = config.budget, config.budget.asked()
    if not asked:
        return None
    served = {each.name: getattr(budget, each.name) for each in fields(Serving) if each.name != "latency"}
    return Limits(parent=parent, serving=Serving(**served, latency=_latency_table(budget, parent)), asked=asked)


def _latency_table(budget: BudgetConfig, parent: Geometry) -> LatencyTable | None:
    if budget.latency_table is None:
        return None
    try:
        return LatencyTable.from_json(read_json(Path(budget.latency_table)), budget.latency_phase, parent)
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise ValueError(f"prune.budget.latency_table={budget.latency_table!r}: {reason}") from None


def _possible(config: PruneConfig, parent: Geometry) -> list[Geometry]:
    """Return every way to share what is asked for between attention and MLP, in the order of `attention_shapes`.

    Raises:
        ValueError: it cannot be had of this parent.
    """
    space, limits = search_space(config, parent), limits_of(config, parent)
    if limits is not None:
        return within(limits, space)
    assert config.remove_fraction is not None
    return splits(Removal(parent=parent, remove_fraction=config.remove_fraction), space)


def _asked(config: PruneConfig) -> str:
    """Return how much is to be cut, as it is given on the command line."""
    if config.remove_fraction is not None:
        return f"prune.remove_fraction={config.remove_fraction:g}"
    return " ".join(f"prune.budget.{name}={limit:g}" for name, limit in config.budget.asked().items())


def split_candidates(config: PruneConfig, parent: Geometry) -> list[Geometry]:
    """Return the dimensions that `prune.split=auto` measures, most key-value heads first.

    Of each number of them (of whole heads: of all) they are evenly spaced, where there are more than it may try.

    Raises:
        ValueError: the request cannot be met with this parent, or not in so many rounds.
    """
    found = [each for each in _measurable(config, parent) if _can_be_cut_to(config, parent, each)]
    if not found:
        raise ValueError(f"prune.rounds={config.rounds} is too many for {_asked(config)}: a round would remove nothing")
    return [each for line in _by_heads(config, found) for each in _evenly_spaced(line, config.split_candidates)]


def _can_be_cut_to(config: PruneConfig, parent: Geometry, final: Geometry) -> bool:
    """Return whether each of the rounds can remove something on the way to these dimensions."""
    try:
        return config.rounds == 1 or bool(geometries(config, parent, final))
    except ValueError:
        return False


def _evenly_spaced(shapes: list[Geometry], most: int) -> list[Geometry]:
    """Return `most` of the shapes, first and last among them, or all where there are no more; the middle one alone."""
    if most == 1:
        return [shapes[len(shapes) // 2]]
    last, gaps = len(shapes) - 1, max(1, min(most, len(shapes)) - 1)
    return [shapes[round(place * last / gaps)] for place in range(min(most, len(shapes)))]


def _measurable(config: PruneConfig, parent: Geometry) -> list[Geometry]:
    found = _possible(config, parent)
    if not found:
        raise ValueError(f"prune.split=auto finds no dimensions for {_asked(config)}: use prune.split=equal")
    return found


def _by_heads(config: PruneConfig, found: list[Geometry]) -> list[list[Geometry]]:
    """Group dimensions by their number of key-value heads, most first; all are one group where whole heads are cut."""
    return [found] if config.method.attention == "heads" else by_key_value_heads(found)


def loses_ordered_heads(config: PruneConfig, before: Geometry, targets: Iterable[Geometry]) -> bool:
    """Return whether key-value heads go beside dims of every head, by what they are worth together.

    Whole heads alone go by their scores.
    """
    had = [each.num_key_value_heads for each in before.widths()]
    return config.method.attention == "pairs" and any(
        [one.num_key_value_heads for one in each.widths()] != had for each in targets
    )


def _with_head_dim(config: PruneConfig, parent: Geometry, head_dim: int) -> Geometry:
    """Return the dimensions that have this head_dim and are as large as is asked for."""
    limits = limits_of(config, parent)
    # Of limits also what a wider head would meet with as wide an MLP: it is asked for.
    found = widest_of_each(limits, search_space(config, parent)) if limits else _possible(config, parent)
    for geometry in found:
        if geometry.head_dim == head_dim:
            return geometry
    allowed = ", ".join(str(geometry.head_dim) for geometry in found)
    raise ValueError(
        f"prune.head_dim={head_dim} is not allowed: with {_asked(config)} and {_reason(config, 'head_dim')} it can be "
        f"{allowed}"
    )


def _check_suits(config: PruneConfig, parent: Geometry, final: Geometry) -> None:
    """Raise ValueError, with the nearest allowed dimensions, unless the target takes those that were given."""
    multiples = search_space(config, parent).multiples
    for name, below in (
        ("head_dim", multiples.head_dims_below(parent)),
        ("intermediate_size", multiples.intermediate_sizes_below(parent)),
    ):
        given, allowed = getattr(final, name), [*below, getattr(parent, name)]
        if given not in allowed:
            smaller, larger = [each for each in allowed if each < given], [each for each in allowed if each > given]
            nearest = smaller[-1:] + larger[:1]
            raise ValueError(
                f"prune.{name}={given} is not allowed with {_reason(config, name)}: the nearest allowed is "
                f"{' or '.join(map(str, nearest))}; prune.multiple.{name}, if given, counts instead of the target"
            )


def _reason(config: PruneConfig, dimension: str) -> str:
    """Return the setting that decides which sizes are allowed, as it is given on the command line."""
    own = getattr(config.multiple, dimension)
    return f"prune.target={config.target}" if own is None else f"prune.multiple.{dimension}={own}"


def search_space(config: PruneConfig, parent: Geometry) -> SearchSpace:
    """Return the dimensions that the target takes, unless the configuration says otherwise."""
    found, own = multiples_for(config.target, parent, pairs_are_free=config.rotary_pairs == "free"), config.multiple
    if own.head_dim is not None and config.method.attention != "heads":
        found = replace(found, head_dim=own.head_dim, head_dims=None, row=1, keeps_attention=False)
    if own.intermediate_size is not None:
        found = replace(found, intermediate_size=own.intermediate_size)
    found, method = replace(found, num_key_value_heads=own.num_key_value_heads), config.method
    # Which heads go follows from Gram matrices, and what they leave behind is measured beside the other splits.
    measured = config.split == "auto" and method.attention == "pairs" and method.refit != "none"
    fewer_heads = measured and config.budget.limits_cache()
    return SearchSpace.below(parent, found, cuts_heads=method.attention == "heads", fewer_heads=fewer_heads)
