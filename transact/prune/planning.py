"""From scores to the plan of a round: the best units of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry
from transact.prune.budget import removed_fraction
from transact.prune.plan import PrunePlan, as_tuples

if TYPE_CHECKING:
    from torch import Tensor

    from transact.prune.criteria import Scores


def make_plan(
    scores: Scores,
    source: Geometry,
    target: Geometry,
    *,
    parent: Geometry,
    asked: float | None,
    unit: str = "pairs",
    pair_scope: str = "model",
    pairs_in_progression: bool = False,
    value_basis: str = "dims",
    query_head_scores: Tensor | None = None,
    channels: Sequence[Sequence[int]] | None = None,
    norm_shares: tuple[Tensor, Tensor] | None = None,
    method: dict[str, Any] | None = None,
) -> PrunePlan:
    """Keep the best units of each kind.

    Args:
        scores: of the units of the current checkpoint.
        source: dimensions of the current checkpoint.
        target: dimensions to reach.
        parent: the dense model, which the fraction reached is counted from.
        asked: fraction asked for, for the record.
        unit: what attention loses: "pairs" (rotary pairs of q and k, dims of v and o), "heads" (whole heads), or
            "shared_dims" (the same dims, chosen by the values' scores, in q, k, v and o).
        pair_scope: "model", "layer" or "head": what shares one set of pairs.
        pairs_in_progression: keep pairs 0, s, 2s, ... for the best s; of scope "model".
        value_basis: see `PrunePlan`.
        query_head_scores: (layers, num_attention_heads), for unit "heads".
        channels: kept channels of each layer where they were chosen already.
        norm_shares: where queries and keys are normalised: the mean share of each pair in the square of a query, and
            of a key, (layers, source.head_dim // 2) each.
        method: for the record.
    """
    queries, groups = _all_heads(source)
    if unit == "heads":
        assert query_head_scores is not None
        queries, groups = best_heads(query_head_scores, source, target)
    values = _per_head(best_indices(scores.values, target.head_dim), groups)
    query_key = values
    if unit == "pairs":
        query_key = _pair_dims(scores.pairs, source, target, pair_scope, in_progression=pairs_in_progression)
    if channels is None:
        channels = best_indices(scores.channels, target.intermediate_size).tolist()
    query_gains, key_gains = (
        (None, None) if norm_shares is None else (_norm_gains(each, query_key, target) for each in norm_shares)
    )
    return PrunePlan(
        query_heads=as_tuples(queries),
        key_value_heads=as_tuples(groups),
        query_key_dims=as_tuples(query_key),
        value_dims=as_tuples(values),
        channels=as_tuples(channels),
        value_basis=value_basis if target.head_dim < source.head_dim else "dims",
        rotary="recreated" if unit == "shared_dims" else "kept",
        pair_scope=pair_scope,
        source=source,
        target=target,
        asked=asked,
        reached=removed_fraction(parent, target),
        method=method or {},
        query_norm_gains=query_gains,
        key_norm_gains=key_gains,
    )


def _norm_gains(shares: Tensor, query_key: Any, target: Geometry) -> tuple[float, ...]:
    """Root of the summed shares of each layer's kept pairs."""
    pairs = [layer[0][: target.head_dim // 2] for layer in query_key]
    return tuple(float(row[list(kept)].sum().sqrt()) for row, kept in zip(shares, pairs, strict=True))


def best_heads(scores: Tensor, source: Geometry, target: Geometry) -> tuple[list[list[int]], list[list[int]]]:
    """Key-value heads whose best query heads score highest, and those query heads.

    With as many key-value heads as query heads it is the highest scores. scores: (layers, num_attention_heads).
    """
    per_group = target.queries_per_key_value_head
    grouped = scores.view(source.num_layers, source.num_key_value_heads, source.queries_per_key_value_head)
    members = best_indices(grouped, per_group)  # (layers, groups, per_group) within the group
    groups = best_indices(grouped.gather(-1, members).sum(dim=-1), target.num_key_value_heads)
    first = groups.unsqueeze(-1) * source.queries_per_key_value_head
    chosen = members.gather(1, groups.unsqueeze(-1).expand(-1, -1, per_group)) + first
    return chosen.flatten(1).tolist(), groups.tolist()


def best_indices(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the ``count`` highest scores in each row: (..., C) -> (..., count).

    The lower index wins a tie; ``torch.topk`` promises no order, and ranks must agree.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def _pair_dims(
    scores: Tensor, source: Geometry, target: Geometry, scope: str, *, in_progression: bool
) -> list[list[list[int]]]:
    """Dims of the best pairs, both halves: (layers)(key-value heads)(target.head_dim)."""
    if in_progression:
        assert scope == "model"
        scores = _progression_scores(scores, target.head_dim // 2)
    if scope == "model":
        scores = scores.sum(dim=(0, 1), keepdim=True)
    elif scope == "layer":
        scores = scores.sum(dim=1, keepdim=True)
    pairs = best_indices(scores, target.head_dim // 2)
    pairs = pairs.expand(source.num_layers, source.num_key_value_heads, -1)
    return (pairs.repeat(1, 1, 2) + _half_offsets(pairs, source)).tolist()


def _progression_scores(scores: Tensor, count: int) -> Tensor:
    """Scores by which the best pairs of the model are 0, s, 2s, ... for the s whose pairs score most together."""
    available = scores.shape[-1]
    longest = (available - 1) // max(count - 1, 1)
    total = scores.sum(dim=(0, 1))
    stride = max(range(1, longest + 1), key=lambda each: float(total[: each * count : each].sum()))
    chosen = scores.new_zeros(1, 1, available)
    chosen[..., : stride * count : stride] = 1
    return chosen


def _half_offsets(pairs: Tensor, source: Geometry) -> Tensor:
    half = source.head_dim // 2
    return pairs.new_tensor([0] * pairs.shape[-1] + [half] * pairs.shape[-1])


def _all_heads(source: Geometry) -> tuple[list[list[int]], list[list[int]]]:
    counts = (source.num_attention_heads, source.num_key_value_heads)
    queries, groups = ([list(range(count))] * source.num_layers for count in counts)
    return queries, groups


def _per_head(dims: Tensor, groups: list[list[int]]) -> list[list[list[int]]]:
    """The dims of the kept key-value heads."""
    return [[dims[layer, group].tolist() for group in heads] for layer, heads in enumerate(groups)]
