"""Criteria: how important is each unit that can be cut?

To add one, write a function from statistics to `Scores` and enter it in `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.prune.statistics import ActivationStatistics


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Importance of every unit; higher is kept. Only the order matters, within each row.

    Attributes:
        rotary_pairs: (head_dim // 2,). One score per pair for the whole model, because a stock
            LLaMA has one set of rotary frequencies for all its layers and heads.
        value_dims: (layers, num_key_value_heads, head_dim).
        channels: (layers, intermediate_size).
    """

    rotary_pairs: Tensor
    value_dims: Tensor
    channels: Tensor


def activation_norm(statistics: ActivationStatistics, geometry: Geometry) -> Scores:
    """Score units by the L2 norm of their activations, as TransAct does (arXiv 2407.05690).

    Queries and keys depart from the paper, which scores them in value space (worse than random
    there). A pair's part of the attention logit is at most |q||k|, hence the product of norms.
    """
    group_shape = (
        geometry.num_layers,
        geometry.num_key_value_heads,
        geometry.queries_per_key_value_head,
        geometry.head_dim,
    )
    # Query heads of a group share value dims: their squares add up.
    value_energy = statistics.attention_output.view(group_shape).sum(dim=2)
    return Scores(
        rotary_pairs=_pair_scores(statistics, geometry.queries_per_key_value_head),
        value_dims=value_energy.sqrt(),
        channels=statistics.intermediate.sqrt(),
    )


def _pair_scores(statistics: ActivationStatistics, queries_per_key_value_head: int) -> Tensor:
    """Sum over layers of each pair's share of the layer's norm products: (head_dim // 2,)."""
    key_norm = statistics.key.sqrt().repeat_interleave(queries_per_key_value_head, dim=1)
    product = (statistics.query.sqrt() * key_norm).sum(dim=1)  # (layers, pairs)
    # Shares, so that a layer with large activations does not decide for all the others.
    total = product.sum(dim=1, keepdim=True).clamp_min(torch.finfo(product.dtype).tiny)
    return (product / total).sum(dim=0)


CRITERIA: dict[str, Callable[[ActivationStatistics, Geometry], Scores]] = {
    "activation_norm": activation_norm,
}
