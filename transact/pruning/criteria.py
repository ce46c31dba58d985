"""Criteria: how important is each unit that can be cut?

Every kind of unit has a table of criteria by name; to add one, write a function from `Evidence` to scores
and enter it there. Higher is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.statistics import ActivationStatistics
from transact.pruning.weights import LayerWeights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Importance of every unit, float64. Only the order matters.

    Attributes:
        pairs: (layers, num_key_value_heads, head_dim // 2), of rotary pairs, summed over a group's query heads.
        values: (layers, num_key_value_heads, head_dim).
        channels: (layers, intermediate_size).
    """

    pairs: Tensor
    values: Tensor
    channels: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """What units are judged by.

    Attributes:
        magnitude: `magnitude_scores` of every layer, stacked; only for the criterion of that name.
        seed: of the criterion `random`.
    """

    geometry: Geometry
    statistics: ActivationStatistics
    magnitude: Scores | None = None
    seed: int = 0


Criterion = Callable[[Evidence], Tensor]


def norm_product(evidence: Evidence) -> Tensor:
    """Product of the norms of a pair's queries and keys: their part of a logit is at most |q||k|."""
    statistics, group = evidence.statistics, evidence.geometry.queries_per_key_value_head
    key_norm = statistics.key.sqrt().repeat_interleave(group, dim=1)
    return _sum_over_group(statistics.query.sqrt() * key_norm, evidence.geometry)


def value_norms(evidence: Evidence) -> Tensor:
    """L2 norm of the attention output, as TransAct (arXiv 2407.05690); a group's query heads add up."""
    return _sum_over_group(evidence.statistics.attention_output, evidence.geometry).sqrt()


def channel_norms(evidence: Evidence) -> Tensor:
    """L2 norm of the MLP's intermediate activation, as TransAct (arXiv 2407.05690)."""
    return evidence.statistics.intermediate.sqrt()


def _collected(name: str) -> Criterion:
    """A statistic that is a score as it is."""

    def criterion(evidence: Evidence) -> Tensor:
        sums = getattr(evidence.statistics, name)
        assert sums is not None, f"{name} was not collected"
        per_query_head = name in ("token_product", "logit_variance")
        return _sum_over_group(sums, evidence.geometry) if per_query_head else sums

    return criterion


def _magnitude(kind: str) -> Criterion:
    def criterion(evidence: Evidence) -> Tensor:
        assert evidence.magnitude is not None
        return getattr(evidence.magnitude, kind)

    return criterion


def _random(kind: str) -> Criterion:
    def criterion(evidence: Evidence) -> Tensor:
        like = {"pairs": norm_product, "values": value_norms, "channels": channel_norms}[kind](evidence)
        generator = torch.Generator().manual_seed(evidence.seed)
        return torch.rand(like.shape, generator=generator, dtype=torch.float64)

    return criterion


PAIR_CRITERIA: dict[str, Criterion] = {
    "norm_product": norm_product,
    "token_product": _collected("token_product"),
    "logit_variance": _collected("logit_variance"),
    "taylor": _collected("taylor_pairs"),
    "magnitude": _magnitude("pairs"),
    "random": _random("pairs"),
}
VALUE_CRITERIA: dict[str, Criterion] = {
    "norm": value_norms,
    "taylor": _collected("taylor_values"),
    "magnitude": _magnitude("values"),
    "random": _random("values"),
}
CHANNEL_CRITERIA: dict[str, Criterion] = {
    "norm": channel_norms,
    "taylor": _collected("taylor_channels"),
    "magnitude": _magnitude("channels"),
    "random": _random("channels"),
}


def score(evidence: Evidence, *, pairs: str, values: str, channels: str) -> Scores:
    """Scores by the named criteria. A name outside the tables is a choice that needs no scores: norms stand in."""
    return Scores(
        pairs=PAIR_CRITERIA[pairs](evidence),
        values=VALUE_CRITERIA.get(values, value_norms)(evidence),
        channels=CHANNEL_CRITERIA.get(channels, channel_norms)(evidence),
    )


def magnitude_scores(weights: LayerWeights, geometry: Geometry) -> Scores:
    """One layer's scores from its weights alone, without the leading dimension of layers.

    The product of the Frobenius norms of all matrices that meet in a unit: q and k rows of a pair, v rows
    and o columns of a value dim, gate and up rows and down columns of a channel.
    """
    groups, dim = geometry.num_key_value_heads, geometry.head_dim
    per_group = geometry.queries_per_key_value_head

    def rows(weight: Tensor) -> Tensor:
        return weight.double().square().sum(dim=1)

    query = rows(weights.query).view(groups, per_group, 2, dim // 2).sum(dim=(1, 2))
    key = rows(weights.key).view(groups, 2, dim // 2).sum(dim=1)
    output = rows(weights.output.T).view(groups, per_group, dim).sum(dim=1)
    return Scores(
        pairs=(query * key).sqrt(),
        values=(rows(weights.value).view(groups, dim) * output).sqrt(),
        channels=(rows(weights.gate) * rows(weights.up) * rows(weights.down.T)).sqrt(),
    )


def stack_scores(layers: list[Scores]) -> Scores:
    """Scores of single layers as scores of the model."""
    return Scores(
        pairs=torch.stack([each.pairs for each in layers]),
        values=torch.stack([each.values for each in layers]),
        channels=torch.stack([each.channels for each in layers]),
    )


def head_scores(value_norm: Tensor, geometry: Geometry) -> Tensor:
    """TransAct's score of whole heads: mean + (10 / head_dim) * maximum over a head's channel norms.

    Args:
        value_norm: (layers, num_attention_heads, head_dim) norms of the attention output.
        geometry: dimensions.

    Returns:
        (layers, num_attention_heads).
    """
    return value_norm.mean(dim=-1) + 10 / geometry.head_dim * value_norm.amax(dim=-1)


def _sum_over_group(per_query_head: Tensor, geometry: Geometry) -> Tensor:
    """(layers, query heads, units) -> (layers, key-value heads, units)."""
    layers, _, units = per_query_head.shape
    return per_query_head.view(layers, geometry.num_key_value_heads, -1, units).sum(dim=2)
