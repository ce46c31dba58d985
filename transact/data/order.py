"""The order of the sequences of a store: pure arithmetic, the same on every rank and for every number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from transact.config.pruning import RESERVED_SPREAD

POSITIONS_AT_ONCE = 16_384  # since a batch is few of them


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceOrder:
    """A shuffled pass over the sequences of a store, after a reserved part that is never trained on.

    The state of the data is one integer: the number of sequences taken so far. Every pass over the text
    has an order of its own. The reserved part is drawn from the beginning of the store, so that a store of more of the
    same text reserves the same sequences.
    """

    num_sequences: int
    num_reserved: int
    seed: int

    def __post_init__(self) -> None:
        assert 0 <= self.num_reserved <= self.num_sequences

    @property
    def num_drawn_from(self) -> int:
        """Sequences at the beginning of the store that the reserved ones are drawn from."""
        return min(self.num_sequences, RESERVED_SPREAD * self.num_reserved)

    @property
    def num_trainable(self) -> int:
        return self.num_sequences - self.num_reserved

    def used(self, count: int) -> list[int]:
        """Return how many of the first `count` training sequences are of each source: there is one."""
        return [count]

    def passes(self, count: int) -> list[float]:
        """Return how often the first `count` training sequences use each source."""
        return [count / self.num_trainable if count else 0.0]

    def reserved(self, start: int, count: int) -> torch.Tensor:
        """Return (count,) positions in the store of the reserved sequences [start, start + count)."""
        assert start + count <= self.num_reserved
        return _permutation(self.num_drawn_from, self.seed)[start : start + count]

    def trainable(self, start: int, count: int) -> torch.Tensor:
        """Return (count,) positions in the store of the training sequences number [start, start + count)."""
        return from_blocks(partial(_block, self), start, count)

    def compute(self, start: int, count: int) -> torch.Tensor:
        """Return what `trainable` returns, which remembers it."""
        drawn_from = self.num_drawn_from
        left = _permutation(drawn_from, self.seed)[self.num_reserved :]
        numbers = torch.arange(start, start + count)
        passes = numbers // self.num_trainable
        places = torch.empty_like(numbers)
        for one_pass in sorted(set(passes.tolist())):
            chosen = passes == one_pass
            order = _permutation(self.num_trainable, self.seed + 1 + one_pass)
            places[chosen] = order[numbers[chosen] % self.num_trainable]
        # The pool is what is left of those drawn from, then all behind them; it is never made, since it may be large.
        is_left = places < len(left)
        places[is_left] = left[places[is_left]]
        places[~is_left] += self.num_reserved
        return places


def from_blocks(block: Callable[[int], torch.Tensor], start: int, count: int) -> torch.Tensor:
    """Return entries [start, start + count) of blocks: block(n) has those from n * POSITIONS_AT_ONCE on.

    A batch is a small part of a block, so that it costs a slice where its positions would cost many small operations.
    """
    first, last = start // POSITIONS_AT_ONCE, (start + max(count, 1) - 1) // POSITIONS_AT_ONCE
    blocks = [block(number) for number in range(first, last + 1)]
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return whole[start - first * POSITIONS_AT_ONCE :][:count].clone()


@lru_cache(maxsize=2)
def _block(order: SequenceOrder, number: int) -> torch.Tensor:
    return order.compute(number * POSITIONS_AT_ONCE, POSITIONS_AT_ONCE)


@lru_cache(maxsize=256)  # two for each source of a mixture; many passes are over small texts
def _permutation(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def micro_batches(num_sequences: int, size: int, rank: int, world_size: int) -> list[tuple[int, int] | None]:
    """Return this rank's ranges [start, stop) when micro-batches are dealt out to the ranks in turn.

    The content of a micro-batch does not depend on the number of ranks. Every rank gets the same number
    of entries, since a sharded forward needs all ranks; None marks an entry that only fills up.
    """
    ranges = [(start, min(start + size, num_sequences)) for start in range(0, num_sequences, size)]
    rounds = -(-len(ranges) // world_size)
    numbers = [turn * world_size + rank for turn in range(rounds)]
    return [ranges[number] if number < len(ranges) else None for number in numbers]
