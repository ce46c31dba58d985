"""From a plan to the rows and columns of weight matrices. Pure functions; all indices are int64.

A projection's weight is (outputs, inputs). Heads lie one after the other along the attention's
inner dimension, each ``head_dim`` wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from transact.prune.planning import PrunePlan


def query_rows(plan: PrunePlan) -> Tensor:
    """Rows of q_proj to keep: (num_attention_heads * target.head_dim,)."""
    return _rotary_rows(plan, plan.source.num_attention_heads)


def key_rows(plan: PrunePlan) -> Tensor:
    """Rows of k_proj to keep: (num_key_value_heads * target.head_dim,)."""
    return _rotary_rows(plan, plan.source.num_key_value_heads)


def value_rows(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of v_proj to keep: (num_key_value_heads * target.head_dim,)."""
    return _head_indices(plan.value_dims[layer], plan.source.head_dim)


def output_columns(plan: PrunePlan, layer: int) -> Tensor:
    """Columns of o_proj to keep: (num_attention_heads * target.head_dim,).

    A query head reads the values of its group's key-value head, so it keeps that head's dims.
    """
    group = plan.source.queries_per_key_value_head
    per_query_head = [dims for dims in plan.value_dims[layer] for _ in range(group)]
    return _head_indices(per_query_head, plan.source.head_dim)


def channel_indices(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of gate_proj and up_proj, columns of down_proj: (target.intermediate_size,)."""
    return torch.tensor(plan.channels[layer], dtype=torch.int64)


def query_scale(plan: PrunePlan) -> float:
    """Factor for q_proj, so that stock attention keeps the temperature it was trained with.

    Stock code divides logits by sqrt(head_dim) of the *new* head: sqrt(r/d) / sqrt(r) is the
    old 1 / sqrt(d).
    """
    return math.sqrt(plan.target.head_dim / plan.source.head_dim)


def _rotary_rows(plan: PrunePlan, num_heads: int) -> Tensor:
    half = plan.source.head_dim // 2
    both_halves = [*plan.rotary_pairs, *(pair + half for pair in plan.rotary_pairs)]
    return _head_indices([both_halves] * num_heads, plan.source.head_dim)


def _head_indices(dims_per_head: Sequence[Sequence[int]], head_dim: int) -> Tensor:
    """Flatten dims within heads to positions along all heads."""
    within = torch.tensor(dims_per_head, dtype=torch.int64)  # (heads, kept)
    starts = torch.arange(len(dims_per_head)).unsqueeze(1) * head_dim  # (heads, 1)
    return (starts + within).flatten()
