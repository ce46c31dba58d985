"""Maps of what calibration measured and the selection kept, one per kind of channel: layer by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.pruning.selection import Selection
from transact.pruning.statistics import ATTENTION_OUTPUT, INTERMEDIATE, KEY, QUERY, ActivationStatistics


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationMap:
    """Activation norms of one kind of channel in all layers, and which channels were kept.

    Attributes:
        norms: (layers, channels) float64, the root of the mean square over tokens.
        kept: (layers, channels) bool; None where the cut is made in another basis than the channels'.
        sizes: (layers,) channels of each layer; behind those of a narrower one norms are zero.
    """

    norms: Tensor
    kept: Tensor | None
    sizes: Tensor

    def mean_norm(self) -> float:
        return float(self.norms.sum() / self.sizes.sum())

    def kept_energy(self) -> Tensor | None:
        """Return the share of the squares in kept channels, (layers,): 1 where all are zero; None without `kept`."""
        if self.kept is None:
            return None
        squares = self.norms.square()
        total = squares.sum(dim=1)
        kept = (squares * self.kept).sum(dim=1)
        return torch.where(total > 0, kept / total.clamp_min(torch.finfo(total.dtype).tiny), 1.0)

    def redundancy(self) -> Tensor:
        """Return 1 - participation ratio / channels, (layers,).

        It is 0 where all channels carry the same energy, near 1 where few carry all. The participation ratio is
        (sum of squares)^2 / (sum of fourth powers).
        """
        squares = self.norms.square()
        tiny = torch.finfo(squares.dtype).tiny
        participating = squares.sum(dim=1).square() / squares.square().sum(dim=1).clamp_min(tiny)
        return 1 - participating / self.sizes


def activation_maps(statistics: ActivationStatistics, selection: Selection) -> dict[str, ActivationMap]:
    """Return the maps by kind of channel.

    The kinds are "query" and "key" (rotary pairs, head by head), "attention_output" (dims, head by head) and
    "intermediate". A rotary pair counts as kept if any of its two dims is. "attention_output" has no `kept` where
    values get a basis from the data before they are cut.
    """
    source = selection.source
    pairs = source.head_dim // 2
    key = torch.zeros(source.num_layers, source.num_key_value_heads, source.head_dim, dtype=torch.bool)
    value, query = torch.zeros_like(key), torch.zeros(*statistics[QUERY].shape[:2], dtype=torch.bool)
    channels = torch.zeros(source.num_layers, source.intermediate_size, dtype=torch.bool)
    for layer in range(source.num_layers):
        query[layer, list(selection.query_heads[layer])] = True
        channels[layer, list(selection.channels[layer])] = True
        for position, head in enumerate(selection.key_value_heads[layer]):
            key[layer, head, list(selection.query_key_dims[layer][position])] = True
            value[layer, head, list(selection.value_dims[layer][position])] = True
    group = source.num_attention_heads // source.num_key_value_heads
    key_pairs = key[..., :pairs] | key[..., pairs:]
    query_pairs = key_pairs.repeat_interleave(group, dim=1) & query.unsqueeze(-1)
    output = value.repeat_interleave(group, dim=1) & query.unsqueeze(-1)
    kept = {
        QUERY: query_pairs,
        KEY: key_pairs,
        ATTENTION_OUTPUT: output if selection.value_basis == "dims" else None,
        INTERMEDIATE: channels,
    }
    tokens = max(1, statistics.num_tokens)
    layers = [source.of_layer(layer) for layer in range(source.num_layers)]
    return {
        each.name: ActivationMap(
            norms=(statistics[each] / tokens).sqrt().flatten(1),
            kept=None if mask is None else mask.flatten(1),
            sizes=torch.tensor([math.prod(each.shape(own)) for own in layers]),
        )
        for each, mask in kept.items()
    }
