"""How much every transitional channel was used on the calibration text.

Every figure is a sum over tokens or sequences: the sum over batches, or over ranks, *is* the merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from transact.geometry import Geometry

# Sums of one layer, in the order in which the model computes what they are of.
QUERIES_AND_KEYS = ("query_share", "key_share", "query", "key", "token_product", "logit_variance")
FORWARD = (*QUERIES_AND_KEYS, "attention_output", "intermediate")
BACKWARD = ("taylor_channels", "taylor_values", "taylor_pairs")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationStatistics:
    """Sums over the calibration tokens, float64, per transitional channel.

    Squares, always collected:

    Attributes:
        query: (layers, num_attention_heads, head_dim // 2), per rotary pair. Pair ``i`` is dims
            ``i`` and ``i + head_dim // 2`` of a head.
        key: (layers, num_key_value_heads, head_dim // 2), per rotary pair.
        attention_output: (layers, num_attention_heads, head_dim), the input of ``o_proj``.
        intermediate: (layers, intermediate_size), the input of ``down_proj``.
        num_tokens: tokens summed over.
        token_product: `pair_scores.pair_products`, (layers, num_attention_heads, head_dim // 2), on request.
        logit_variance: `pair_scores.logit_variances`, the same shape, on request.
        taylor_pairs: `taylor.gate_gradients` of rotary pairs, (layers, num_key_value_heads, head_dim // 2), on
            request, and with them the next two.
        taylor_values: of value dims, (layers, num_key_value_heads, head_dim).
        taylor_channels: of MLP channels, (layers, intermediate_size).
        query_share: summed over the heads too, the share of each rotary pair in the square of a query before it is
            normalised, (layers, head_dim // 2); for families that normalise.
        key_share: the same of keys.
    """

    query: Tensor
    key: Tensor
    attention_output: Tensor
    intermediate: Tensor
    num_tokens: int
    token_product: Tensor | None = None
    logit_variance: Tensor | None = None
    taylor_pairs: Tensor | None = None
    taylor_values: Tensor | None = None
    taylor_channels: Tensor | None = None
    query_share: Tensor | None = None
    key_share: Tensor | None = None

    @classmethod
    def zeros(cls, geometry: Geometry, extra: frozenset[str] = frozenset()) -> ActivationStatistics:
        """Statistics of no token at all, on the CPU: the neutral element of addition.

        Args:
            geometry: of the model.
            extra: names of the attributes on request that are wanted.
        """
        layers, pairs, dim = geometry.num_layers, geometry.head_dim // 2, geometry.head_dim
        heads, groups = geometry.num_attention_heads, geometry.num_key_value_heads
        shapes = {
            "query": (layers, heads, pairs),
            "key": (layers, groups, pairs),
            "attention_output": (layers, heads, dim),
            "intermediate": (layers, geometry.intermediate_size),
        }
        on_request = {
            "token_product": (layers, heads, pairs),
            "logit_variance": (layers, heads, pairs),
            "taylor_pairs": (layers, groups, pairs),
            "taylor_values": (layers, groups, dim),
            "taylor_channels": (layers, geometry.intermediate_size),
            "query_share": (layers, pairs),
            "key_share": (layers, pairs),
        }
        shapes |= {name: on_request[name] for name in extra}
        return cls(num_tokens=0, **{name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})

    def __add__(self, other: ActivationStatistics) -> ActivationStatistics:
        ours, theirs = self.to_tensors(), other.to_tensors()
        assert ours.keys() == theirs.keys()
        return self.from_tensors({name: tensor + theirs[name] for name, tensor in ours.items()})

    def norm_shares(self, geometry: Geometry) -> tuple[Tensor, Tensor] | None:
        """Mean shares of queries and keys, (layers, head_dim // 2) each; None where they were not collected."""
        if self.query_share is None or self.key_share is None:
            return None
        return (
            self.query_share / (self.num_tokens * geometry.num_attention_heads),
            self.key_share / (self.num_tokens * geometry.num_key_value_heads),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; ``num_tokens`` becomes an int64 scalar."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["num_tokens"] = torch.tensor(self.num_tokens, dtype=torch.int64)
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ActivationStatistics:
        """Inverse of `to_tensors`."""
        sums = {name: tensor for name, tensor in tensors.items() if name != "num_tokens"}
        return cls(num_tokens=int(tensors["num_tokens"].item()), **sums)

    def broken_layer(self) -> tuple[int, str] | None:
        """Where the first sum that is not finite was computed: its layer, and its name; None where all are.

        In the order of computation: whatever follows is broken too. All gradients come after the last layer's
        activations.
        """
        layers = range(len(self.query))
        for names, order in ((FORWARD, layers), (BACKWARD, reversed(layers))):
            sums = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
            for layer in order:
                for name, tensor in sums.items():
                    if not tensor[layer].isfinite().all():
                        return layer, name
        return None


def channel_energy(activation: Tensor) -> Tensor:
    """Sum of squares of each channel over all leading dims: (..., C) -> (C,) float64.

    float32 inside one batch, float64 across batches: all terms are positive, so nothing cancels
    and float32 keeps six digits over a batch (2e-7 off, measured on 2,048 tokens), where a float64
    copy of the activation would double the memory. bf16 is widened first: with its eight bits a
    running sum soon stops growing.
    """
    rows = activation.detach().reshape(-1, activation.shape[-1]).float()  # (tokens, C)
    return rows.square().sum(dim=0).double()


def rotary_pair_energy(activation: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Sum of squares of each rotary pair, float64.

    (..., num_heads * head_dim) -> (num_heads, head_dim // 2)

    The rotary embedding rotates a pair in its plane, so the pair's norm is the same before and
    after it: the output of the projection will do, without the position.
    """
    energy = channel_energy(activation).view(num_heads, 2, head_dim // 2)
    return energy.sum(dim=1)


def rotary_pair_shares(activation: Tensor) -> Tensor:
    """Share of each rotary pair in a head's square, summed over tokens and heads: (..., head_dim) -> (pairs,) float64.

    A head that is all zero has no shares, and adds none.
    """
    halves = activation.detach().float().reshape(-1, 2, activation.shape[-1] // 2)
    squares = halves.square().sum(dim=1)  # (tokens and heads, pairs)
    total = squares.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (squares / total).sum(dim=0).double()
