"""Choose which units of each layer stay, by their scores: rotary pairs, value dimensions, heads and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry
from transact.pruning.pair_gains import pair_gains
from transact.pruning.search_space import reached_fraction

if TYPE_CHECKING:
    from torch import Tensor

    from transact.pruning.criteria import Scores


Dims = tuple[tuple[tuple[int, ...], ...], ...]  # (layers)(heads)(dims)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Kept units, as ascending indices into the model that is about to be sliced.

    That model may itself be the result of an earlier round; indices never refer further back.

    Attributes:
        query_heads: (layers)(num_attention_heads) kept query heads, those of a group side by side; the numbers of heads
            and channels are those of the layer in `target`.
        key_value_heads: (layers)(num_key_value_heads) kept key-value heads.
        query_key_dims: (layers)(num_key_value_heads)(target.head_dim) kept dims of q and k.
        value_dims: the same of v and o; where `value_basis` is not "dims", of no meaning but as a fallback.
        channels: (layers)(intermediate_size) kept channels of gate, up and down.
        value_basis: "dims" keeps the value dims as they are; "svd" and "pca" change the basis first, from the
            data, while slicing.
        rotary: "kept": dims of q and k go in rotary pairs and keep their frequencies; "recreated": the
            frequencies are those of a fresh model with the smaller head.
        pair_scope: over what a set of pairs was chosen together: "model", "layer" or "head".
        source: dimensions of the model before slicing.
        target: dimensions after.
        reached: the share of the dense parent's parameters that is gone by then.
        method: how the units were chosen, for the record.
        query_norm_gains: a factor per layer for the norm of queries, where there is one and pairs are cut: the
            root of the mean share that the kept pairs have in the square of a query. None: 1.
        key_norm_gains: the same of keys.
        pair_gains: (layers)(query heads)(2)(kept pairs) real and imaginary parts of complex factors for the queries of
            the pairs that stay, which make up for those that go; None: 1.
    """

    query_heads: tuple[tuple[int, ...], ...]
    key_value_heads: tuple[tuple[int, ...], ...]
    query_key_dims: Dims
    value_dims: Dims
    channels: tuple[tuple[int, ...], ...]
    value_basis: str
    rotary: str
    pair_scope: str
    source: Geometry
    target: Geometry
    reached: float
    method: dict[str, Any]
    query_norm_gains: tuple[float, ...] | None = None
    key_norm_gains: tuple[float, ...] | None = None
    pair_gains: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...] | None = None

    def __post_init__(self) -> None:
        source, target = self.source, self.target
        assert self.value_basis in ("dims", "svd", "pca")
        assert self.rotary in ("kept", "recreated")
        for per_layer in (self.query_heads, self.key_value_heads, self.query_key_dims, self.value_dims, self.channels):
            assert len(per_layer) == source.num_layers
        for layer in range(source.num_layers):
            own, had = target.of_layer(layer), source.of_layer(layer)
            _check_kept(self.query_heads[layer], own.num_attention_heads, had.num_attention_heads)
            _check_kept(self.key_value_heads[layer], own.num_key_value_heads, had.num_key_value_heads)
            for heads in (self.query_key_dims[layer], self.value_dims[layer]):
                assert len(heads) == own.num_key_value_heads
                for dims in heads:
                    _check_kept(dims, target.head_dim, source.head_dim)
            _check_kept(self.channels[layer], own.intermediate_size, had.intermediate_size)
        if self.rotary == "kept":
            half = source.head_dim // 2
            for dims in chain.from_iterable(self.query_key_dims):
                pairs = dims[: target.head_dim // 2]
                assert dims[target.head_dim // 2 :] == tuple(pair + half for pair in pairs), "not whole rotary pairs"

    def rotary_pairs(self, layer: int, key_value_head: int) -> tuple[int, ...]:
        """Return the kept pairs of one head; where the scope is the model, all heads keep the same."""
        assert self.rotary == "kept"
        return self.query_key_dims[layer][key_value_head][: self.target.head_dim // 2]

    def to_json(self) -> dict[str, Any]:
        """Return the selection as a dictionary of JSON types."""
        values = asdict(self) | {"source": self.source.to_dict(), "target": self.target.to_dict()}
        return {name: _as_lists(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Selection:
        """Build from a dictionary of JSON types: the inverse of `to_json`."""
        geometries = {name: Geometry.from_dict(values[name]) for name in ("source", "target")}
        known = {each.name for each in fields(cls)}  # earlier versions also recorded what had been asked for
        return cls(**({name: as_tuples(value) for name, value in values.items() if name in known} | geometries))


def as_tuples(value: Any) -> Any:
    """Turn lists within lists, as JSON and tensors give them, into tuples, as in a selection's attributes."""
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _as_lists(value: Any) -> Any:
    return list(map(_as_lists, value)) if isinstance(value, (list, tuple)) else value


def _check_kept(indices: Sequence[int], count: int, available: int) -> None:
    assert len(indices) == count, f"{len(indices)} units kept instead of {count}"
    assert all(low < high for low, high in pairwise(indices)), "not ascending"
    assert indices[0] >= 0 and indices[-1] < available, f"index outside 0..{available - 1}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The dimensions that a cut is to reach.

    Attributes:
        target: dimensions to reach.
        parent: the dense model, which the fraction reached is counted from.
    """

    target: Geometry
    parent: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Which units are chosen, and what shares one choice.

    Attributes:
        unit: what attention loses: "pairs" (rotary pairs of q and k, dims of v and o), "heads" (whole heads), or
            "shared_dims" (the same dims, chosen by the values' scores, in q, k, v and o).
        pair_scope: "model", "layer" or "head": what shares one set of pairs.
        pairs_in_progression: keep pairs 0, s, 2s, ... for the best s; of scope "model".
        value_basis: see `Selection`.
        method: for the record.
    """

    unit: str = "pairs"
    pair_scope: str = "model"
    pairs_in_progression: bool = False
    value_basis: str = "dims"
    method: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Units that were chosen already, by more than their scores.

    Attributes:
        channels: kept channels of each layer; None: by their scores.
        head_orders: of each layer the key-value heads in the order in which they go, with their query heads; None: by
            the scores of heads.
    """

    channels: Sequence[Sequence[int]] | None = None
    head_orders: Sequence[Sequence[int]] | None = None


NONE_CHOSEN = Chosen()


def make_selection(
    scores: Scores,
    source: Geometry,
    goal: Goal,
    rules: Rules,
    *,
    chosen: Chosen = NONE_CHOSEN,
    norm_shares: tuple[Tensor, Tensor] | None = None,
    part_covariance: Tensor | None = None,
) -> Selection:
    """Choose the best units of each kind.

    Args:
        scores: of the units of the model that is cut; for unit "heads" with those of whole heads.
        source: dimensions of the model that is cut.
        chosen: units that were chosen already.
        norm_shares: where queries and keys are normalised: the mean share of each pair in the square of a query, and
            of a key, (layers, source.head_dim // 2) each.
        part_covariance: where the pairs that stay get gains: (layers, num_attention_heads, head_dim, head_dim).
    """
    target = goal.target
    queries, groups = _kept_heads(scores.heads, source, target, chosen.head_orders)
    values = _per_head(best_indices(scores.values, target.head_dim), groups)
    query_key = values
    if rules.unit == "pairs":
        query_key = _per_head(_pair_dims(scores.pairs, source, target, rules), groups)
    channels = chosen.channels
    if channels is None:
        widths = [each.intermediate_size for each in target.widths()]
        channels = [best_indices(row, width).tolist() for row, width in zip(scores.channels, widths, strict=True)]
    query_gains, key_gains = (
        (None, None) if norm_shares is None else (_norm_gains(each, query_key, target) for each in norm_shares)
    )
    return Selection(
        query_heads=as_tuples(queries),
        key_value_heads=as_tuples(groups),
        query_key_dims=as_tuples(query_key),
        value_dims=as_tuples(values),
        channels=as_tuples(channels),
        value_basis=rules.value_basis if target.head_dim < source.head_dim else "dims",
        rotary="recreated" if rules.unit == "shared_dims" else "kept",
        pair_scope=rules.pair_scope,
        source=source,
        target=target,
        reached=reached_fraction(goal.parent, target),
        method=dict(rules.method),
        query_norm_gains=query_gains,
        key_norm_gains=key_gains,
        pair_gains=None
        if part_covariance is None
        else as_tuples(_pair_gains(part_covariance, queries, query_key, target)),
    )


def _pair_gains(covariance: Tensor, queries: list[list[int]], query_key: Any, target: Geometry) -> list[list[Any]]:
    """Return the gains of the kept query heads, whose group shares its pairs: (layers)(query heads)(2)(kept pairs)."""
    group, pairs = target.queries_per_key_value_head, target.head_dim // 2
    return [
        [
            gains
            for number, dims in enumerate(layer)
            for gains in pair_gains(heads[kept[group * number : group * (number + 1)]], dims[:pairs]).tolist()
        ]
        for heads, kept, layer in zip(covariance, queries, query_key, strict=True)
    ]


def _norm_gains(shares: Tensor, query_key: Any, target: Geometry) -> tuple[float, ...]:
    """Return the root of the summed shares of each layer's kept pairs."""
    pairs = [layer[0][: target.head_dim // 2] for layer in query_key]
    return tuple(float(row[list(kept)].sum().sqrt()) for row, kept in zip(shares, pairs, strict=True))


def _kept_heads(
    scores: Tensor | None, source: Geometry, target: Geometry, orders: Sequence[Sequence[int]] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Return, by layer, the query heads and the key-value heads that stay: the best where some go, else all."""
    queries, groups = [], []
    per_group = source.queries_per_key_value_head
    for layer in range(source.num_layers):
        own, had = target.of_layer(layer), source.of_layer(layer)
        if own.num_attention_heads < had.num_attention_heads and orders is None:
            assert scores is not None
            here = scores[layer : layer + 1, : had.num_attention_heads]
            best = best_heads(here, replace(had, num_layers=1), replace(own, num_layers=1))
            queries += best[0]
            groups += best[1]
            continue
        order = range(had.num_key_value_heads) if orders is None else orders[layer]
        groups.append(sorted(order[-own.num_key_value_heads :]))
        queries.append([head * per_group + each for head in groups[-1] for each in range(per_group)])
    return queries, groups


def best_heads(scores: Tensor, source: Geometry, target: Geometry) -> tuple[list[list[int]], list[list[int]]]:
    """Return, by layer, the best query heads of the best groups, and the key-value heads of these groups.

    The best groups are those whose best query heads have the highest sum of scores. With as many key-value heads as
    query heads these are the heads with the highest scores.

    Args:
        scores: (layers, num_attention_heads).
    """
    per_group = target.queries_per_key_value_head
    grouped = scores.view(source.num_layers, source.num_key_value_heads, source.queries_per_key_value_head)
    members = best_indices(grouped, per_group)  # (layers, groups, per_group) within the group
    groups = best_indices(grouped.gather(-1, members).sum(dim=-1), target.num_key_value_heads)
    first = groups.unsqueeze(-1) * source.queries_per_key_value_head
    chosen = members.gather(1, groups.unsqueeze(-1).expand(-1, -1, per_group)) + first
    return chosen.flatten(1).tolist(), groups.tolist()


def best_indices(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the ``count`` highest scores in each row: (..., C) -> (..., count).

    The lower index wins a tie; ``torch.topk`` promises no order, and ranks must agree.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def _pair_dims(scores: Tensor, source: Geometry, target: Geometry, rules: Rules) -> Tensor:
    """Return the dims of the best pairs, both halves: (layers, source.num_key_value_heads, target.head_dim)."""
    scope = rules.pair_scope
    if rules.pairs_in_progression:
        assert scope == "model"
        scores = _progression_scores(scores, target.head_dim // 2)
    if scope == "model":
        scores = scores.sum(dim=(0, 1), keepdim=True)
    elif scope == "layer":
        scores = scores.sum(dim=1, keepdim=True)
    pairs = best_indices(scores, target.head_dim // 2)
    pairs = pairs.expand(source.num_layers, source.num_key_value_heads, -1)
    return pairs.repeat(1, 1, 2) + _half_offsets(pairs, source)


def _progression_scores(scores: Tensor, count: int) -> Tensor:
    """Return scores by which the best pairs are 0, s, 2s, ... for the s whose pairs have the highest sum."""
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


def _per_head(dims: Tensor, groups: list[list[int]]) -> list[list[list[int]]]:
    """Return the dims of the kept key-value heads: (layers)(kept heads)(dims)."""
    return [[dims[layer, group].tolist() for group in heads] for layer, heads in enumerate(groups)]
