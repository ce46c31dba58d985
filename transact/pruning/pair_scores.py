"""Statistics that score rotary pairs by their part of the logits, and all units by first-order Taylor expansion."""

from __future__ import annotations

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.statistics import Statistic


def pair_products(query: Tensor, key: Tensor, geometry: Geometry) -> Tensor:
    """Sum |q||k| of the same token over tokens: a pair contributes no more than that to a logit at distance zero.

    Args:
        query: output of q_proj, (batch, length, num_attention_heads * head_dim); before or after rotation.
        key: output of k_proj, (batch, length, num_key_value_heads * head_dim).
        geometry: dimensions.
    """
    query_norm = _planes(query, geometry).square().sum(dim=-1).sqrt()  # (batch, length, heads, pairs)
    key_norm = _expand(_planes(key, geometry).square().sum(dim=-1).sqrt(), geometry)
    return (query_norm * key_norm).sum(dim=(0, 1)).double()


def logit_variances(
    query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, position: Tensor | None, geometry: Geometry
) -> Tensor:
    """Sum over queries the variance of a pair's part of the logit over the positions that the query may attend to.

    A part that is the same at every position changes no attention weight: softmax ignores it. For query q
    at position t the variance is q^T (M - m m^T) q, with m and M the mean of the rotated keys' plane
    vectors and of their outer products over positions 0 to t of its document: cumulative sums, so the cost is linear.

    Args:
        query: as in `pair_products`, before rotation.
        key: likewise.
        cosine: of the rotary angles, (1 or batch, length, head_dim), as transformers computes it; where key-value heads
            rotate by angles of their own, (1 or batch, length, key-value heads * head_dim).
        sine: likewise.
        position: of each token in its document, (1 or batch, length, 1). None: every sequence is one document.
        geometry: dimensions.
    """
    (query_x, query_y), (x, y) = (rotated(each, cosine, sine, geometry) for each in (query, key))
    mean_x, mean_y = (_means_so_far(each, position) for each in (x, y))
    xx, yy, xy = (
        _expand(_means_so_far(product, position) - mean_product, geometry)
        for product, mean_product in (
            (x * x, mean_x * mean_x),
            (y * y, mean_y * mean_y),
            (x * y, mean_x * mean_y),
        )
    )
    variance = query_x.square() * xx + query_y.square() * yy + 2 * query_x * query_y * xy
    return (variance.clamp_min(0).sum(dim=(0, 1)) / geometry.head_dim).double()


def _means_so_far(values: Tensor, position: Tensor | None) -> Tensor:
    """Return for every token the mean over its document up to it: (batch, length, ...) -> the same shape.

    position: as of `logit_variances`.
    """
    places = torch.arange(values.shape[1], device=values.device)
    if position is None:
        return values.cumsum(1) / (places + 1).to(values.dtype)[:, None, None]
    # In float64: what is subtracted is larger than what is left, the more so behind a long document.
    sums = torch.cat([torch.zeros_like(values[:, :1]), values], dim=1).double().cumsum(1)  # before each token
    rows = torch.arange(len(values), device=values.device).unsqueeze(1)
    begins = places - position.squeeze(-1)
    return ((sums[:, 1:] - sums[rows, begins]) / (position + 1).unsqueeze(-1)).to(values.dtype)


def _planes(activation: Tensor, geometry: Geometry) -> Tensor:
    """Return the plane of each rotary pair, float32.

    (batch, length, heads * head_dim) -> (batch, length, heads, pairs, 2)
    """
    batch, length, _ = activation.shape
    halves = activation.detach().float().view(batch, length, -1, 2, geometry.head_dim // 2)
    return halves.transpose(-1, -2)


def rotated(activation: Tensor, cosine: Tensor, sine: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Rotate queries or keys as attention does. Arguments as of `logit_variances`.

    Returns:
        Both coordinates of each rotary pair, (batch, length, heads, pairs) float32.
    """
    x, y = _planes(activation, geometry).unbind(dim=-1)
    cos, sin = (_by_head(each, x.shape[2], geometry.head_dim) for each in (cosine, sine))
    return x * cos - y * sin, y * cos + x * sin


def _by_head(angles: Tensor, heads: int, head_dim: int) -> Tensor:
    """Return cosines or sines of each pair: (1 or batch, length, 1 or heads, pairs), float32."""
    found = angles.float().view(*angles.shape[:2], -1, head_dim)[..., : head_dim // 2]
    return found if found.shape[2] == 1 else found.repeat_interleave(heads // found.shape[2], dim=2)


def _expand(per_key_value_head: Tensor, geometry: Geometry) -> Tensor:
    """Repeat each key-value head for the query heads of its group."""
    return per_key_value_head.repeat_interleave(geometry.queries_per_key_value_head, dim=2)


def gate_gradients(activation: Tensor, gradient: Tensor) -> Tensor:
    """Sum a * dL/da over tokens, with L the loss of the sequence; float64.

    (sequences, length, C) twice -> (sequences, C)

    Args:
        gradient: of a loss that is a mean over the sequences: undone here, so that every sequence counts the same.
    """
    return (activation.detach().float() * gradient.float()).sum(dim=1).double() * len(activation)


def taylor_pairs(query: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Sum |dL/dgate| over sequences for gates on rotary pairs: (key-value heads, head_dim // 2).

    A pair of a key-value head meets the pairs of all its query heads, so they are gated together. A gate
    on the keys' side would give the same: the logit is a product of both.
    """
    gates = gate_gradients(query, gradient)
    shape = (len(gates), geometry.num_key_value_heads, geometry.queries_per_key_value_head, 2, geometry.head_dim // 2)
    return gates.view(shape).sum(dim=(2, 3)).abs().sum(dim=0)


def taylor_values(attention_output: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Sum |dL/dgate| over sequences for gates on value dims: (key-value heads, head_dim)."""
    gates = gate_gradients(attention_output, gradient)
    shape = (len(gates), geometry.num_key_value_heads, geometry.queries_per_key_value_head, geometry.head_dim)
    return gates.view(shape).sum(dim=2).abs().sum(dim=0)


def taylor_channels(intermediate: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Sum |dL/dgate| over sequences for gates on MLP channels: (intermediate_size,)."""
    return gate_gradients(intermediate, gradient).abs().sum(dim=0)


TOKEN_PRODUCT = Statistic(
    name="token_product",
    observes=("query", "key"),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim // 2),
    of_batch=pair_products,
)
LOGIT_VARIANCE = Statistic(
    name="logit_variance",
    observes=("query", "key", "cosine", "sine", "position"),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim // 2),
    of_batch=logit_variances,
)
TAYLOR_PAIRS = Statistic(
    name="taylor_pairs",
    observes=("query",),
    shape=lambda geometry: (geometry.num_key_value_heads, geometry.head_dim // 2),
    of_batch=taylor_pairs,
    needs_gradients=True,
)
TAYLOR_VALUES = Statistic(
    name="taylor_values",
    observes=("attention_output",),
    shape=lambda geometry: (geometry.num_key_value_heads, geometry.head_dim),
    of_batch=taylor_values,
    needs_gradients=True,
)
TAYLOR_CHANNELS = Statistic(
    name="taylor_channels",
    observes=("intermediate",),
    shape=lambda geometry: (geometry.intermediate_size,),
    of_batch=taylor_channels,
    needs_gradients=True,
)
