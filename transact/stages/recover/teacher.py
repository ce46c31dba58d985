"""The dense parent as the teacher of a recovery by distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from transact.engine.engine import Engine, open_engine
from transact.engine.memory import taught_at_once
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.loss_head import Teaching
from transact.stages.job import Job


class Teacher:
    """The dense parent, frozen and sharded like the model that learns from it.

    at_once: micro-batches that it is run on together.
    """

    def __init__(
        self, engine: Engine, geometry: Geometry, *, weight: float, temperature: float, at_once: int = 1
    ) -> None:
        self.engine = engine
        self.geometry = geometry
        self.weight = weight
        self.temperature = temperature
        self.at_once = at_once
        # Every chunk of logits needs it, so it is kept whole: hidden_size * vocab_size elements.
        self.head = engine.output_weight()

    def teach(
        self, batch: Sequence[torch.Tensor], position_ids: Sequence[torch.Tensor | None] = ()
    ) -> Iterator[Teaching]:
        """Yield for each micro-batch the teacher's final hidden states: logits are made from them chunk by chunk.

        batch: tokens (sequences, length) each, of the same shape. position_ids: of each, as in `Engine.loss`.
        """
        for first in range(0, len(batch), self.at_once):
            together = slice(first, first + self.at_once)
            states = list(self.engine.final_hidden(batch[together], position_ids[together]))
            for hidden in states:
                # A copy: a view would keep those of all others alive while the next ones are computed.
                yield Teaching(hidden=hidden.clone(), head=self.head, weight=self.weight, temperature=self.temperature)
            del states, hidden


@contextmanager
def open_teacher(job: Job, parent: Path | None) -> Iterator[Teacher | None]:
    """Yield the teacher where the objective asks for one, else None."""
    config = job.config.recover
    weight = {"cross_entropy": 0.0, "distillation": 1.0, "mixed": config.distillation_weight}[config.objective]
    if weight == 0 or parent is None:
        yield None
        return
    with open_engine(parent, job.config.engine, job.group) as engine:
        geometry = geometry_of(parent)
        at_once = taught_at_once(geometry, job.config, job.group.world_size)
        yield Teacher(engine, geometry, weight=weight, temperature=config.temperature, at_once=at_once)
