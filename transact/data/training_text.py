"""The training text as one store with an order: a text by itself, or a mixture of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy
import torch

from transact.config.inputs import DataConfig
from transact.config.pruning import RESERVED_SPREAD
from transact.data.mixture import Dealing, MixtureOrder, Source
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore


class JoinedStores:
    """The sequences of the first store, then those of the next; read like a `TokenStore`.

    stores: by the settings of their texts.
    """

    def __init__(self, stores: Mapping[str, TokenStore]) -> None:
        assert len({store.sequence_length for store in stores.values()}) == 1
        self.sequence_length = next(iter(stores.values())).sequence_length
        self._stores = list(stores.values())
        sizes = torch.tensor([store.num_sequences for store in self._stores])
        self.num_sequences = int(sizes.sum())
        self._ends = sizes.cumsum(0)
        self.name = _digest({name: store.name for name, store in stores.items()})

    def sequences(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the tokens at positions (sequences,): (sequences, sequence_length), int64."""
        tokens = torch.empty(len(positions), self.sequence_length, dtype=torch.int64)
        for store, chosen, own in self._parts(positions):
            tokens[chosen] = store.sequences(own)
        return tokens

    def counted(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return which of these tokens count for the loss: (sequences, sequence_length) bool. None: all of them."""
        counted = torch.ones(len(positions), self.sequence_length, dtype=torch.bool)
        for store, chosen, own in self._parts(positions):
            of_store = store.counted(own)
            if of_store is not None:
                counted[chosen] = of_store
        return None if bool(counted.all()) else counted

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return where each of these tokens stands in its document, as `TokenStore.position_ids`."""
        position_ids = torch.empty(len(positions), self.sequence_length, dtype=torch.int64)
        for store, chosen, own in self._parts(positions):
            of_store = store.position_ids(own)
            if of_store is None:  # as of every other: they are packed alike
                return None
            position_ids[chosen] = of_store
        return position_ids

    def num_targets(self, positions: torch.Tensor) -> int:
        """Return how many tokens at positions are predicted and count; the first of a sequence is not predicted."""
        return sum(store.num_targets(own) for store, _, own in self._parts(positions))

    def _parts(self, positions: torch.Tensor) -> Iterator[tuple[TokenStore, torch.Tensor, torch.Tensor]]:
        """Yield each store that has some of the positions, which of them it has, and where they are in it."""
        owners = self._owners(positions)
        for number, store in enumerate(self._stores):
            chosen = owners == number
            if chosen.any():
                yield store, chosen, positions[chosen] - (self._ends[number] - store.num_sequences)

    def by_store(self, positions: torch.Tensor) -> list[torch.Tensor]:
        """Return the positions that are in each store."""
        owners = self._owners(positions)
        return [positions[owners == number] for number in range(len(self._stores))]

    def holds(self, documents: numpy.ndarray) -> numpy.ndarray:
        """Return for each hash of a document, (documents,) uint64, whether one of the stores holds a part of it."""
        return numpy.logical_or.reduce([store.holds(documents) for store in self._stores])

    def _owners(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the number of the store of each position: (sequences,)."""
        return torch.searchsorted(self._ends, positions, right=True)


TrainingStore = TokenStore | JoinedStores
TrainingOrder = SequenceOrder | MixtureOrder


def _digest(facts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def sequences_by_text(data: DataConfig, count: int, num_reserved: int) -> dict[str, int]:
    """Return how many sequences of each text are wanted, by its setting, so that all together have `count`.

    Each has at least those that its reserved sequences are drawn from, however few are trained on. Where one stops at
    its end, each of the others may have to stand in for it. Where weights adapt, each text has twice what its first
    weight asks for, and is used again beyond that.
    """
    texts, sources = data.training_texts(), data.train.by_name().values()
    if not sources or any(source.at_end == "stop" for source in sources):
        return dict.fromkeys(texts, count)
    # The reserved sequences and the others are dealt apart, each part with less than one sequence too many.
    dealing = Dealing(tuple(source.weight for source in sources))
    counts = dealing.counts(count) + 2
    if data.train.adaptive:
        counts = (2 * counts).clamp(max=count)
    counts = torch.maximum(counts, RESERVED_SPREAD * dealing.counts(num_reserved))
    return dict(zip(texts, counts.tolist(), strict=True))


def training_text(
    data: DataConfig, stores: Mapping[str, TokenStore], num_reserved: int, seed: int
) -> tuple[TrainingStore, TrainingOrder]:
    """Return the training text and the order of its sequences.

    Args:
        stores: of `data.training_texts`, by their settings.
        num_reserved: sequences that are never trained on.
        seed: of the order.

    Raises:
        ValueError: a source of a mixture has nothing left to train on.
    """
    sources = list(data.train.by_name().values())
    if not sources:
        (store,) = stores.values()
        return store, SequenceOrder(num_sequences=store.num_sequences, num_reserved=num_reserved, seed=seed)
    reserved = Dealing(tuple(source.weight for source in sources)).counts(num_reserved).tolist()
    for (setting, store), own in zip(stores.items(), reserved, strict=True):
        if store.num_sequences <= own:
            raise ValueError(
                f"{setting} has {store.num_sequences} sequences of {store.sequence_length} tokens; by its weight "
                f"{own} of them are for validation and calibration, and at least one for recovery: give it more text, "
                "or a smaller weight"
            )
    mixed = [
        Source(num_sequences=store.num_sequences, weight=source.weight, repeats=source.at_end == "repeat")
        for store, source in zip(stores.values(), sources, strict=True)
    ]
    return JoinedStores(stores), MixtureOrder(mixed, num_reserved, seed)
