"""First-order Taylor importance of a unit: how the loss changes when the unit's output is scaled down.

With a gate of 1 on unit u's activation a, ``dL/dgate = sum over tokens of a * dL/da``: removing the unit
changes the loss by minus that, to first order (Molchanov et al., arXiv 1906.10771). Absolute values are
taken per sequence, so that sums merge and do not depend on how sequences are batched.
"""

from __future__ import annotations

from torch import Tensor

from transact.geometry import Geometry


def gate_gradients(activation: Tensor, gradient: Tensor) -> Tensor:
    """Sum over tokens of a * dL/da: (sequences, length, C) twice -> (sequences, C) float64."""
    return (activation.detach().float() * gradient.float()).sum(dim=1).double()


def taylor_pairs(gates: Tensor, geometry: Geometry) -> Tensor:
    """From the gates of q_proj's output to rotary pairs: (sequences, heads * d) -> (key-value heads, d // 2).

    A pair of a key-value head meets the pairs of all its query heads, so they are gated together. A gate
    on the keys' side would give the same: the logit is a product of both.
    """
    shape = (len(gates), geometry.num_key_value_heads, geometry.queries_per_key_value_head, 2, geometry.head_dim // 2)
    return gates.view(shape).sum(dim=(2, 3)).abs().sum(dim=0)


def taylor_values(gates: Tensor, geometry: Geometry) -> Tensor:
    """From the gates of o_proj's input to value dims: (sequences, heads * d) -> (key-value heads, d)."""
    shape = (len(gates), geometry.num_key_value_heads, geometry.queries_per_key_value_head, geometry.head_dim)
    return gates.view(shape).sum(dim=2).abs().sum(dim=0)


def taylor_channels(gates: Tensor) -> Tensor:
    """From the gates of down_proj's input: (sequences, C) -> (C,)."""
    return gates.abs().sum(dim=0)
