"""A rank's part of each global batch, read one step ahead so that a GPU never waits for text."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from transact.config.run import RunConfig
from transact.distributed.process import ProcessGroup
from transact.stages.texts import Texts


def own_batch(positions: torch.Tensor, micro_batch: int, group: ProcessGroup) -> list[torch.Tensor]:
    """Return this rank's micro-batches of a batch, as positions in the store; positions: of the whole batch."""
    return list(torch.split(positions, micro_batch)[group.rank :: group.world_size])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """What a rank computes a loss of at once.

    Attributes:
        tokens: (sequences, length) int64.
        counted: (sequences, length) bool, the tokens that count as targets. None: all.
        position_ids: (sequences, length) int64, that begin anew at every document. None: each sequence is one.
        weight: of the mean over its targets, in the batch's: their number, relative to the mean over all micro-batches
            of all ranks. So the mean of weighted losses, which gradients are accumulated to, is the mean over all
            targets of the batch, wherever they are; 0 throughout a batch without any.
    """

    tokens: torch.Tensor
    counted: torch.Tensor | None
    position_ids: torch.Tensor | None
    weight: float


class Batches:
    """The batches of a recovery. first_sequence: of its text, where its first step begins."""

    def __init__(self, texts: Texts, first_sequence: int, config: RunConfig, group: ProcessGroup) -> None:
        self._texts = texts
        self._first = first_sequence
        self._sequences = config.recover.batch
        self._micro_batch = config.engine.micro_batch
        self._group = group
        self._ahead: tuple[int, list[MicroBatch]] | None = None
        self._seconds = 0.0

    def of(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step, on its device."""
        if self._ahead is None or self._ahead[0] != step:
            self.read_ahead(step)
        assert self._ahead is not None
        (_, batch), self._ahead = self._ahead, None
        return batch

    def read_ahead(self, step: int) -> None:
        """Read a step's text, and have it copied to the device while that computes."""
        begin = time.perf_counter()
        first = self._first + step * self._sequences
        whole = self._texts.order.trainable(first, self._sequences)
        # Every rank counts those of all for itself: none waits for the others here.
        mean_targets = self._texts.train.num_targets(whole) * self._micro_batch / self._sequences
        batch = own_batch(whole, self._micro_batch, self._group)
        self._ahead = step, [self._micro_batch_of(positions, mean_targets) for positions in batch]
        self._seconds += time.perf_counter() - begin

    def begin_anew(self, texts: Texts) -> None:
        """Go on with the texts in another order, and forget what was read ahead."""
        self._texts, self._ahead = texts, None

    def take_seconds(self) -> float:
        """Return the seconds spent on reading since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _micro_batch_of(self, positions: torch.Tensor, mean_targets: float) -> MicroBatch:
        store = self._texts.train
        counted, position_ids = store.counted(positions), store.position_ids(positions)
        return MicroBatch(
            tokens=self._on_device(store.sequences(positions)),
            counted=None if counted is None else self._on_device(counted),
            position_ids=None if position_ids is None else self._on_device(position_ids),
            # Exactly 1 where all tokens count, which of a mixture a micro-batch alone does not tell.
            weight=store.num_targets(positions) / (mean_targets or 1.0),
        )

    def _on_device(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._group.device.type != "cuda":
            return tokens
        return tokens.pin_memory().to(self._group.device, non_blocking=True)  # pageable memory would be waited for
