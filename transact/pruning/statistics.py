"""Sums over the calibration text of what each layer computes, from which criteria score the units.

A `Statistic` says once what it looks at, its shape and how a micro-batch adds to it; hooks, the sum over ranks, the
file and the criteria follow from that. Every figure is a sum over tokens or sequences: the sum over batches, or over
ranks, *is* the merge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.geometry import Geometry

# What a statistic may look at, in the order in which a layer computes it; (sequences, length, heads * head_dim) where
# nothing else is said.
ACTIVATIONS = (
    "cosine",  # of the rotary angles, (1 or sequences, length, head_dim, or of every key-value head)
    "sine",
    "position",  # of each token in its document, (1 or sequences, length, 1); None: every sequence is one document
    "query_before_norm",  # in families that normalise queries and keys; in others the same as "query"
    "query",  # what is rotated: `pair_scores.rotated` makes of it what attention sees
    "key_before_norm",
    "key",
    "value",
    "attention_output",  # input of o_proj
    "intermediate",  # input of down_proj, (sequences, length, intermediate_size)
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Statistic:
    """A sum over tokens or sequences of a function of a layer's activations, for every layer.

    Attributes:
        name: its name in statistics.safetensors and in messages.
        observes: the activations that it looks at, names out of `ACTIVATIONS`.
        shape: of one layer's sum, from the dimensions of the model.
        of_batch: from these activations of a micro-batch, in the order of `observes`, and the dimensions to one
            layer's sum, float64. It must not change them.
        needs_gradients: `of_batch` gets the gradient of the loss, a mean over the micro-batch, behind its activation,
            which must be a single one; calibration then differentiates the loss.
    """

    name: str
    observes: tuple[str, ...]
    shape: Callable[[Geometry], tuple[int, ...]]
    of_batch: Callable[..., Tensor]
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        assert self.observes and set(self.observes) <= set(ACTIVATIONS), self.observes
        assert not self.needs_gradients or len(self.observes) == 1, self.observes

    def last_observed(self) -> str:
        """Return the observed activation that a layer computes last: all others are there by then."""
        return max(self.observes, key=ACTIVATIONS.index)


def channel_energy(activation: Tensor) -> Tensor:
    """Sum the squares of each channel over all leading dims: (..., C) -> (C,) float64.

    float32 inside one batch, float64 across batches: all terms are positive, so nothing cancels
    and float32 keeps six digits over a batch (2e-7 off, measured on 2,048 tokens), where a float64
    copy of the activation would double the memory. bf16 is widened first: with its eight bits a
    running sum soon stops growing.
    """
    rows = activation.detach().reshape(-1, activation.shape[-1]).float()  # (tokens, C)
    return rows.square().sum(dim=0).double()


def rotary_pair_energy(activation: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Sum the squares of each rotary pair, float64.

    (..., num_heads * head_dim) -> (num_heads, head_dim // 2)

    The rotary embedding rotates a pair in its plane, so the pair's norm is the same before and
    after it: the output of the projection is enough, without the position.
    """
    energy = channel_energy(activation).view(num_heads, 2, head_dim // 2)
    return energy.sum(dim=1)


def rotary_pair_shares(activation: Tensor, geometry: Geometry) -> Tensor:
    """Sum the share of each rotary pair in a head's square over tokens and heads.

    (..., heads * head_dim) -> (head_dim // 2,) float64. A head that is all zero has no shares, and adds none.
    """
    halves = activation.detach().float().reshape(-1, 2, geometry.head_dim // 2)
    squares = halves.square().sum(dim=1)  # (tokens and heads, pairs)
    total = squares.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (squares / total).sum(dim=0).double()


# Squares. Pair `i` is dims `i` and `i + head_dim // 2` of a head.
QUERY = Statistic(
    name="query",
    observes=("query",),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim // 2),
    of_batch=lambda query, geometry: rotary_pair_energy(query, geometry.num_attention_heads, geometry.head_dim),
)
KEY = Statistic(
    name="key",
    observes=("key",),
    shape=lambda geometry: (geometry.num_key_value_heads, geometry.head_dim // 2),
    of_batch=lambda key, geometry: rotary_pair_energy(key, geometry.num_key_value_heads, geometry.head_dim),
)
ATTENTION_OUTPUT = Statistic(
    name="attention_output",
    observes=("attention_output",),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim),
    of_batch=lambda output, geometry: channel_energy(output).view(-1, geometry.head_dim),
)
INTERMEDIATE = Statistic(
    name="intermediate",
    observes=("intermediate",),
    shape=lambda geometry: (geometry.intermediate_size,),
    of_batch=lambda intermediate, geometry: channel_energy(intermediate),
)
SQUARES = (QUERY, KEY, ATTENTION_OUTPUT, INTERMEDIATE)  # every run sums these: its activation maps need them

# Where queries and keys are normalised: what the cut of a norm needs.
QUERY_SHARE = Statistic(
    name="query_share",
    observes=("query_before_norm",),
    shape=lambda geometry: (geometry.head_dim // 2,),
    of_batch=rotary_pair_shares,
)
KEY_SHARE = Statistic(
    name="key_share",
    observes=("key_before_norm",),
    shape=lambda geometry: (geometry.head_dim // 2,),
    of_batch=rotary_pair_shares,
)
NORM_SHARES = (QUERY_SHARE, KEY_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationStatistics:
    """Sums over the calibration text.

    Attributes:
        sums: (layers, *shape) float64 each, by the statistic's name; where layers differ, the shape is that of the
            largest, and what another one lacks of it is zero.
        num_tokens: tokens summed over.
    """

    sums: Mapping[str, Tensor]
    num_tokens: int

    def __getitem__(self, statistic: Statistic) -> Tensor:
        """Return the sum of one statistic, (layers, *shape)."""
        assert statistic.name in self.sums, f"{statistic.name} was not collected"
        return self.sums[statistic.name]

    @classmethod
    def zeros(cls, geometry: Geometry, statistics: Collection[Statistic] = SQUARES) -> ActivationStatistics:
        """Return statistics of no token at all, on the CPU: the neutral element of addition."""
        sums = {
            each.name: torch.zeros(geometry.num_layers, *each.shape(geometry), dtype=torch.float64)
            for each in statistics
        }
        assert len(sums) == len(statistics), f"two statistics have the same name: {[each.name for each in statistics]}"
        return cls(num_tokens=0, sums=sums)

    def __add__(self, other: ActivationStatistics) -> ActivationStatistics:
        assert self.sums.keys() == other.sums.keys()
        return ActivationStatistics(
            sums={name: tensor + other.sums[name] for name, tensor in self.sums.items()},
            num_tokens=self.num_tokens + other.num_tokens,
        )

    def norm_shares(self, geometry: Geometry) -> tuple[Tensor, Tensor] | None:
        """Return the mean shares of queries and keys, (layers, head_dim // 2) each; None if they were not collected."""
        if not {each.name for each in NORM_SHARES} <= self.sums.keys():
            return None
        heads = torch.tensor([[each.num_key_value_heads] for each in geometry.widths()], dtype=torch.float64)
        return (
            self[QUERY_SHARE] / (self.num_tokens * heads * geometry.queries_per_key_value_head),
            self[KEY_SHARE] / (self.num_tokens * heads),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Return named tensors for a safetensors file; ``num_tokens`` becomes an int64 scalar."""
        return {**self.sums, "num_tokens": torch.tensor(self.num_tokens, dtype=torch.int64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ActivationStatistics:
        """Build from named tensors: the inverse of `to_tensors`."""
        sums = {name: tensor for name, tensor in tensors.items() if name != "num_tokens"}
        return cls(num_tokens=int(tensors["num_tokens"].item()), sums=sums)

    def broken_layer(self, statistics: Collection[Statistic]) -> tuple[int, Statistic] | None:
        """Return layer and statistic of the first sum that is not finite; None where all are finite.

        The first is meant in the order of computation: whatever follows is broken too. All gradients come after the
        last layer's activations.

        Args:
            statistics: those that were collected.
        """
        in_order = sorted(statistics, key=lambda each: ACTIVATIONS.index(each.last_observed()))
        forward = [each for each in in_order if not each.needs_gradients]
        backward = [each for each in reversed(in_order) if each.needs_gradients]
        layers = range(len(next(iter(self.sums.values()))))
        for passed, order in ((forward, layers), (backward, reversed(layers))):
            for layer in order:
                for each in passed:
                    if not self[each][layer].isfinite().all():
                        return layer, each
        return None
