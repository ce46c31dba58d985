"""How much of a held-out text stands in the training text too, word for word, by windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

from transact.data.token_store import TokenStore

WINDOW = 13  # tokens, as GPT-3 (arXiv 2005.14165, appendix C) counts in words: shorter ones recur by chance
TOLD_SHARE = 0.01  # of a text's windows: common phrases make less
CHUNK_TOKENS = 1 << 20
FACTOR = numpy.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost in 64 bits
BITS_PER_WINDOW = 64  # of a filter before the exact search: one window of others in 64 gets through


class Windows:
    """The windows of a held-out text, and which of them were found elsewhere.

    Windows are compared by hashes of 64 bits: of 10^6 windows and 10^10 others, one in 1,800 texts has one by chance.

    Args:
        once: whether only those count that stand there once; what a chat template writes stands in every conversation.
    """

    def __init__(self, store: TokenStore, *, once: bool = False) -> None:
        hashes = numpy.concatenate([numpy.empty(0, numpy.uint64), *window_hashes(store, range(store.num_sequences))])
        known, counts = numpy.unique(hashes, return_counts=True)
        self._known, self._counts = (each[counts == 1] if once else each for each in (known, counts))
        self.found = torch.zeros(len(self._known), dtype=torch.int64)
        self._shift = numpy.uint64(64 - max((BITS_PER_WINDOW * len(self._known)).bit_length(), 3))
        self._filter = numpy.zeros(1 << int(64 - self._shift), dtype=bool)
        self._filter[self._known >> self._shift] = True

    def look_in(self, store: TokenStore, sequences: range, on_chunk: Callable[[int], object]) -> None:
        """Look for the windows in some sequences of another text. on_chunk: called with the tokens that are done."""
        if not len(self._known):
            return
        for hashes in window_hashes(store, sequences):
            candidates = hashes[self._filter[hashes >> self._shift]]
            places = numpy.searchsorted(self._known, candidates).clip(max=len(self._known) - 1)
            self.found[places[self._known[places] == candidates]] = 1
            on_chunk(len(hashes))

    def share(self) -> float:
        """Return which share of the text's windows was found, each counted as often as it stands there."""
        counts = torch.from_numpy(self._counts)
        return float((counts * (self.found > 0)).sum() / counts.sum()) if len(counts) else 0.0


def window_hashes(store: TokenStore, sequences: range) -> Iterator[Any]:
    """Yield the hashes of all windows of consecutive sequences, and of those that reach into the next: (windows,)."""
    step = max(CHUNK_TOKENS // store.sequence_length, 1)
    reach = -(-WINDOW // store.sequence_length)  # sequences that a window of the last one may end in
    for first in range(sequences.start, sequences.stop, step):
        stop = min(first + step, sequences.stop)
        read = torch.arange(first, min(stop + reach, store.num_sequences))
        tokens = store.sequences(read).flatten().numpy().astype(numpy.uint64)
        windows = min(len(tokens) - WINDOW + 1, (stop - first) * store.sequence_length)
        if windows > 0:
            yield _hashes(tokens, windows)


def _hashes(tokens: Any, windows: int) -> Any:
    found = numpy.zeros(windows, dtype=numpy.uint64)
    for place in range(WINDOW):
        found *= FACTOR
        found += tokens[place : place + windows] + numpy.uint64(1)
    found ^= found >> numpy.uint64(32)
    found *= FACTOR
    return found
