"""The weights of one decoder layer that a cut changes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerWeights:
    """Projections of a layer, each (outputs, inputs).

    Attributes:
        query: (num_attention_heads * head_dim, hidden_size).
        key: (num_key_value_heads * head_dim, hidden_size).
        value: (num_key_value_heads * head_dim, hidden_size).
        output: (hidden_size, num_attention_heads * head_dim).
        gate: (intermediate_size, hidden_size).
        up: (intermediate_size, hidden_size).
        down: (hidden_size, intermediate_size).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
