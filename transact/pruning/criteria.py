"""Criteria: the importance of each unit that can be cut.

Every kind of unit has a table of criteria by name, which the settings of prune.method take. To add one, write a
function from `Evidence` to scores and enter it there with the statistics that it reads: calibration then sums them.
The units with the highest scores are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.pair_gains import PART_COVARIANCE
from transact.pruning.pair_scores import (
    LOGIT_VARIANCE,
    TAYLOR_CHANNELS,
    TAYLOR_PAIRS,
    TAYLOR_VALUES,
    TOKEN_PRODUCT,
)
from transact.pruning.statistics import (
    ATTENTION_OUTPUT,
    INTERMEDIATE,
    KEY,
    NORM_SHARES,
    QUERY,
    SQUARES,
    ActivationStatistics,
    Statistic,
)
from transact.pruning.weights import LayerWeights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Importance of every unit, float64. Only the order matters.

    Where layers differ, the dimensions are those of the largest. Channels and heads that a layer lacks come last, by a
    score of minus infinity.

    Attributes:
        pairs: (layers, num_key_value_heads, head_dim // 2), of rotary pairs, summed over a group's query heads.
        values: (layers, num_key_value_heads, head_dim).
        channels: (layers, intermediate_size).
        heads: (layers, num_attention_heads), of whole heads; None where nothing was observed.
    """

    pairs: Tensor
    values: Tensor
    channels: Tensor
    heads: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """What a criterion may look at.

    Attributes:
        magnitude: `magnitude_scores` of every layer, stacked; only where a criterion looks at weights.
        seed: of the criterion `random`.
    """

    geometry: Geometry
    statistics: ActivationStatistics
    magnitude: Scores | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Criterion:
    """A rule that scores the units of one kind.

    Attributes:
        score: from the evidence to scores, (layers, ...) as in `Scores`.
        statistics: what it reads besides `SQUARES`, which every run sums.
        looks_at_weights: it reads `Evidence.magnitude`.
    """

    score: Callable[[Evidence], Tensor]
    statistics: tuple[Statistic, ...] = ()
    looks_at_weights: bool = False


def norm_product(evidence: Evidence) -> Tensor:
    """Return the product of the norms of a pair's queries and keys: their part of a logit is at most |q||k|."""
    statistics, group = evidence.statistics, evidence.geometry.queries_per_key_value_head
    key_norm = statistics[KEY].sqrt().repeat_interleave(group, dim=1)
    return _sum_over_group(statistics[QUERY].sqrt() * key_norm, evidence.geometry)


def value_norms(evidence: Evidence) -> Tensor:
    """Return the L2 norm of the attention output, as TransAct (arXiv 2407.05690); a group's query heads add up."""
    return _sum_over_group(evidence.statistics[ATTENTION_OUTPUT], evidence.geometry).sqrt()


def channel_norms(evidence: Evidence) -> Tensor:
    """Return the L2 norm of the MLP's intermediate activation, as TransAct (arXiv 2407.05690)."""
    return evidence.statistics[INTERMEDIATE].sqrt()


def _sum_of(statistic: Statistic, *, per_query_head: bool = False) -> Criterion:
    """Make a criterion of a statistic that is a score as it is; a group's query heads add up."""

    def score(evidence: Evidence) -> Tensor:
        sums = evidence.statistics[statistic]
        return _sum_over_group(sums, evidence.geometry) if per_query_head else sums

    return Criterion(score=score, statistics=(statistic,))


def _magnitude(kind: str) -> Criterion:
    def score(evidence: Evidence) -> Tensor:
        assert evidence.magnitude is not None
        return getattr(evidence.magnitude, kind)

    return Criterion(score=score, looks_at_weights=True)


def _random(like: Criterion) -> Criterion:
    """Make a criterion that gives random scores, in the shape of another criterion's."""

    def score(evidence: Evidence) -> Tensor:
        generator = torch.Generator().manual_seed(evidence.seed)
        return torch.rand(like.score(evidence).shape, generator=generator, dtype=torch.float64)

    return Criterion(score=score, statistics=like.statistics)


PAIR_NORMS, VALUE_NORMS, CHANNEL_NORMS = (Criterion(score=each) for each in (norm_product, value_norms, channel_norms))
PAIR_CRITERIA: dict[str, Criterion] = {
    "norm_product": PAIR_NORMS,
    "token_product": _sum_of(TOKEN_PRODUCT, per_query_head=True),
    "logit_variance": _sum_of(LOGIT_VARIANCE, per_query_head=True),
    "taylor": _sum_of(TAYLOR_PAIRS),
    "magnitude": _magnitude("pairs"),
    "random": _random(PAIR_NORMS),
}
VALUE_CRITERIA: dict[str, Criterion] = {
    "norm": VALUE_NORMS,
    "taylor": _sum_of(TAYLOR_VALUES),
    "magnitude": _magnitude("values"),
    "random": _random(VALUE_NORMS),
}
CHANNEL_CRITERIA: dict[str, Criterion] = {
    "norm": CHANNEL_NORMS,
    "taylor": _sum_of(TAYLOR_CHANNELS),
    "magnitude": _magnitude("channels"),
    "random": _random(CHANNEL_NORMS),
}
# Choices that need no scores, so that norms stand in: a basis for the values from the data, and greedy elimination.
VALUE_BASES = ("svd", "pca")
CHANNEL_ELIMINATIONS = ("obs",)


class Choice(Protocol):
    """The settings of prune.method that name criteria."""

    attention: str
    pair_score: str
    values: str
    channels: str
    pair_gains: str


def choices() -> dict[str, tuple[str, ...]]:
    """Return the names that each setting of prune.method takes."""
    return {
        "pair_score": tuple(PAIR_CRITERIA),
        "values": (*VALUE_BASES, *VALUE_CRITERIA),
        "channels": (*CHANNEL_ELIMINATIONS, *CHANNEL_CRITERIA),
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Criteria:
    """The criteria of a method, one for each kind of unit, and whether the pairs that stay get gains, if they can."""

    pairs: Criterion
    values: Criterion
    channels: Criterion
    wants_gains: bool = False

    @classmethod
    def of(cls, choice: Choice) -> Criteria:
        """Look up the criteria of a method by their names."""
        return cls(
            pairs=PAIR_CRITERIA[choice.pair_score],
            values=VALUE_NORMS if choice.values in VALUE_BASES else VALUE_CRITERIA[choice.values],
            channels=CHANNEL_NORMS if choice.channels in CHANNEL_ELIMINATIONS else CHANNEL_CRITERIA[choice.channels],
            wants_gains=choice.attention == "pairs" and choice.pair_gains != "none",
        )

    def _all(self) -> tuple[Criterion, ...]:
        return self.pairs, self.values, self.channels

    def gives_gains(self, geometry: Geometry) -> bool:
        """Return whether the pairs that stay get gains: heads that share a norm of queries take none of their own."""
        return self.wants_gains and not geometry.query_key_norm

    def statistics(self, geometry: Geometry) -> tuple[Statistic, ...]:
        """Return what calibration sums for these criteria, for gains, and for the cut of norms of queries and keys."""
        shares = NORM_SHARES if geometry.query_key_norm else ()
        gains = (PART_COVARIANCE,) if self.gives_gains(geometry) else ()
        needed = (*SQUARES, *(each for criterion in self._all() for each in criterion.statistics), *gains, *shares)
        return tuple(dict.fromkeys(needed))

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration differentiates the loss."""
        return any(each.needs_gradients for criterion in self._all() for each in criterion.statistics)

    @property
    def looks_at_weights(self) -> bool:
        return any(criterion.looks_at_weights for criterion in self._all())

    def score(self, evidence: Evidence) -> Scores:
        """Score the units of every kind, and whole heads."""
        geometry = evidence.geometry
        widths, group = geometry.widths(), geometry.queries_per_key_value_head
        heads = head_scores(evidence.statistics[ATTENTION_OUTPUT].sqrt(), geometry)
        return Scores(
            pairs=self.pairs.score(evidence),
            values=self.values.score(evidence),
            channels=_only(self.channels.score(evidence), [each.intermediate_size for each in widths]),
            heads=_only(heads, [group * each.num_key_value_heads for each in widths]),
        )


def _only(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Put last what lies behind each layer's own units: (layers, units) -> the same."""
    lacks = torch.arange(scores.shape[1]) >= torch.tensor(sizes).unsqueeze(1)
    return scores.masked_fill(lacks, -math.inf)


def magnitude_scores(weights: LayerWeights, geometry: Geometry) -> Scores:
    """Return one layer's scores from its weights alone, without the leading dimension of layers.

    A score is the product of the Frobenius norms of all matrices that meet in a unit: q and k rows of a pair,
    v rows and o columns of a value dim, gate and up rows and down columns of a channel.
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
    """Stack the scores of single layers into scores of the model."""
    return Scores(
        pairs=_stacked([each.pairs for each in layers]),
        values=_stacked([each.values for each in layers]),
        channels=_stacked([each.channels for each in layers]),
    )


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """Stack tensors that may differ in their first dimension, with zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(layers), batch_first=True)


def head_scores(value_norm: Tensor, geometry: Geometry) -> Tensor:
    """Return TransAct's score of whole heads: mean + (10 / head_dim) * maximum over a head's channel norms.

    Args:
        value_norm: (layers, num_attention_heads, head_dim) norms of the attention output.
        geometry: dimensions.

    Returns:
        (layers, num_attention_heads).
    """
    return value_norm.mean(dim=-1) + 10 / geometry.head_dim * value_norm.amax(dim=-1)


def _sum_over_group(per_query_head: Tensor, geometry: Geometry) -> Tensor:
    """Sum over each group's query heads: (layers, query heads, units) -> (layers, key-value heads, units)."""
    layers, _, units = per_query_head.shape
    return per_query_head.view(layers, geometry.num_key_value_heads, -1, units).sum(dim=2)
