"""The weights of one decoder layer that a cut changes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerWeights:
    """Projections of a layer, each (outputs, inputs), and the norms of queries and keys where there are any.

    A bias is the last column of its projection: what is done to rows is right for both.

    Attributes:
        query: (num_attention_heads * head_dim, hidden_size).
        key: (num_key_value_heads * head_dim, hidden_size).
        value: (num_key_value_heads * head_dim, hidden_size).
        output: (hidden_size, num_attention_heads * head_dim).
        gate: (intermediate_size, hidden_size).
        up: (intermediate_size, hidden_size).
        down: (hidden_size, intermediate_size).
        query_norm: (head_dim,), shared by the heads; between the projection and the rotation.
        key_norm: likewise.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
