"""The order of a mixture of texts: from which source each sequence comes, by weight. Pure arithmetic."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from transact.data.order import POSITIONS_AT_ONCE, SequenceOrder, from_blocks

BLOCK = 10_000  # sequences, after which the dealing repeats; weights are rounded to whole sequences of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One text of a mixture.

    weight: its share of the tokens, over the sum of all weights. repeats: whether it begins anew once all of it was
    used; else the others go on without it.
    """

    num_sequences: int
    weight: float
    repeats: bool = True


@lru_cache(maxsize=256)
def dealing(weights: tuple[float, ...]) -> torch.Tensor:
    """Return (BLOCK,) the number of the source of each sequence.

    Of the first n sequences each source has its share of n, less than one sequence more or less: Tijdeman's chairman
    assignment (Discrete Mathematics 32, 1980). So a window anywhere has its share by less than two sequences.
    """
    quotas = _quotas(weights)
    # In units of 1 / (2 * sources - 2) of a sequence: below one unit a source has to wait for its turn.
    unit = max(2 * sum(quota > 0 for quota in quotas) - 2, 1)
    dealt, chosen = [0] * len(quotas), []
    for number in range(1, BLOCK + 1):
        due = {
            source: ((dealt[source] + 1) * unit - 1) / quota
            for source, quota in enumerate(quotas)
            if quota and (quota * number - dealt[source] * BLOCK) * unit >= BLOCK
        }
        earliest = min(due, key=due.__getitem__)
        dealt[earliest] += 1
        chosen.append(earliest)
    return torch.tensor(chosen)


def _quotas(weights: tuple[float, ...]) -> list[int]:
    """Return the sequences of a block that each source has, by largest remainders; at least one where it has weight."""
    shares = [BLOCK * weight / sum(weights) for weight in weights]
    quotas = [max(int(share), 1) if share else 0 for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda source: quotas[source] - shares[source])
    for source in itertools.islice(itertools.cycle(by_remainder), max(BLOCK - sum(quotas), 0)):
        quotas[source] += 1
    while sum(quotas) > BLOCK:  # many sources below one sequence a block
        quotas[quotas.index(max(quotas))] -= 1
    return quotas


def adapted_weights(weights: Sequence[float], losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the weights after a validation, with a sum of 1: a text further above its reference gets more tokens.

    Each weight is multiplied by exp(max(loss - reference, 0)): dynamic batch loading of Sheared LLaMA (arXiv
    2310.06694, algorithm 1). None falls below one sequence of a block, from where it could not come back. losses,
    reference: in nats per token.
    """
    excess = [max(loss - own, 0.0) for loss, own in zip(losses, reference, strict=True)]
    # Less the largest, which the sum takes away again, so that nothing overflows.
    raised = [weight * math.exp(each - max(excess)) for weight, each in zip(weights, excess, strict=True)]
    kept = [max(each / sum(raised), 1 / BLOCK) for each in raised]
    return [each / sum(kept) for each in kept]


class Dealing:
    """An endless dealing of sequences to sources: blocks one after the other."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self._sources = dealing(weights)
        of_block = torch.nn.functional.one_hot(self._sources, len(weights))
        self._before = torch.cat([torch.zeros_like(of_block[:1]), of_block.cumsum(0)])  # (BLOCK + 1, sources)

    def sources(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the source of each sequence: numbers (sequences,)."""
        return self._sources[numbers % BLOCK]

    def counts(self, number: int) -> torch.Tensor:
        """Return (sources,) how many of the first `number` sequences each source has."""
        blocks, rest = divmod(number, BLOCK)
        return blocks * self._before[-1] + self._before[rest]

    def sequences_until(self, source: int, count: int) -> int:
        """Return after how many sequences a source has had `count` of them."""
        of_block = int(self._before[-1, source])
        blocks, rest = divmod(count - 1, of_block)
        return blocks * BLOCK + int((self._sources == source).nonzero()[rest]) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Phase:
    """A part of the order in which the weights stay.

    first: number of its first training sequence. before: (sources,) sequences that each source has had until then.
    """

    first: int
    before: torch.Tensor
    dealing: Dealing

    def counts(self, number: int) -> torch.Tensor:
        return self.before + self.dealing.counts(number - self.first)


class MixtureOrder:
    """The order of the sequences of several stores as one, whose positions follow each other source by source.

    Each source is shuffled by itself, as `SequenceOrder`, and the mixture deals from them. As there, the state is one
    integer and does not depend on the number of ranks. The reserved part is a mixture too. Once every source has
    stopped, the mixture begins anew.
    """

    def __init__(self, sources: Sequence[Source], num_reserved: int, seed: int) -> None:
        self.num_reserved = num_reserved
        self._weights = tuple(source.weight for source in sources)
        self._reserved = Dealing(self._weights)
        reserved = self._reserved.counts(num_reserved)
        self._orders = [
            SequenceOrder(num_sequences=source.num_sequences, num_reserved=int(own), seed=seed)
            for source, own in zip(sources, reserved, strict=True)
        ]
        sizes = torch.tensor([source.num_sequences for source in sources])
        self._offsets = sizes.cumsum(0) - sizes
        self._trainable = sizes - reserved
        assert bool((self._trainable > 0).all())
        self._phases, self._pass = self._plan([source.repeats for source in sources])
        self._block = lru_cache(maxsize=2)(self._compute_block)

    def _plan(self, repeats: Sequence[bool]) -> tuple[list[_Phase], int | None]:
        """Return the phases, and the length of a pass over all of the text, None where a source repeats."""
        weights, first, before = list(self._weights), 0, torch.zeros_like(self._trainable)
        phases: list[_Phase] = []
        while any(weights):
            phases.append(_Phase(first=first, before=before, dealing=Dealing(tuple(weights))))
            ends = {
                source: phases[-1].dealing.sequences_until(source, int(self._trainable[source] - before[source]))
                for source, weight in enumerate(weights)
                if weight and not repeats[source]
            }
            if not ends:
                return phases, None
            stopped = min(ends, key=ends.__getitem__)
            first += ends[stopped]
            before = phases[-1].counts(first)
            weights[stopped] = 0.0
        return phases, first

    def with_changes(self, changes: Sequence[tuple[int, Sequence[float]]]) -> MixtureOrder:
        """Return the order in which other weights hold from some training sequences on: (sequence, weights) each.

        For sources that repeat alone.
        """
        assert self._pass is None and len(self._phases) == 1
        changed = copy.copy(self)
        changed._phases = list(self._phases)
        changed._block = lru_cache(maxsize=2)(changed._compute_block)
        for first, weights in changes:
            before = changed._phases[-1].counts(first)
            changed._phases.append(_Phase(first=first, before=before, dealing=Dealing(tuple(weights))))
        return changed

    def used(self, count: int) -> list[int]:
        """Return how many of the first `count` training sequences are of each source."""
        return self._counts(count).tolist()  # type: ignore[no-any-return]

    def passes(self, count: int) -> list[float]:
        """Return how often the first `count` training sequences use each source."""
        return (self._counts(count) / self._trainable).tolist()  # type: ignore[no-any-return]

    def reserved(self, start: int, count: int) -> torch.Tensor:
        """Return (count,) positions of the reserved sequences [start, start + count), as `SequenceOrder.reserved`."""
        assert start + count <= self.num_reserved
        sources = self._reserved.sources(torch.arange(start, start + count))
        positions = torch.empty_like(sources)
        for source, first in enumerate(self._reserved.counts(start).tolist()):
            chosen = sources == source
            positions[chosen] = self._orders[source].reserved(first, int(chosen.sum())) + self._offsets[source]
        return positions

    def trainable(self, start: int, count: int) -> torch.Tensor:
        """Return (count,) positions of the training sequences number [start, start + count)."""
        return from_blocks(self._block, start, count)

    def _compute_block(self, number: int) -> torch.Tensor:
        start, count = number * POSITIONS_AT_ONCE, POSITIONS_AT_ONCE
        sources = self._sources(torch.arange(start, start + count))
        positions = torch.empty_like(sources)
        for source, first in enumerate(self.used(start)):
            chosen = sources == source  # of one source they follow each other
            positions[chosen] = self._orders[source].compute(first, int(chosen.sum())) + self._offsets[source]
        return positions

    def _sources(self, numbers: torch.Tensor) -> torch.Tensor:
        if self._pass is not None:
            numbers = numbers % self._pass
        firsts = torch.tensor([phase.first for phase in self._phases])
        phases = torch.searchsorted(firsts, numbers, right=True) - 1
        sources = torch.empty_like(numbers)
        for number in sorted(set(phases.tolist())):
            phase, chosen = self._phases[number], phases == number
            sources[chosen] = phase.dealing.sources(numbers[chosen] - phase.first)
        return sources

    def _counts(self, count: int) -> torch.Tensor:
        passes, rest = (0, count) if self._pass is None else divmod(count, self._pass)
        phase = next(phase for phase in reversed(self._phases) if phase.first <= rest)
        return passes * self._trainable + phase.counts(rest)
