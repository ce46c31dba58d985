"""The dense parent as the teacher of a recovery by distillation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from transact.engine.engine import Engine, open_engine
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.loss_head import Teaching
from transact.stages.job import Job


class Teacher:
    """The dense parent, frozen and sharded like the model that learns from it."""

    def __init__(self, engine: Engine, geometry: Geometry, *, weight: float, temperature: float) -> None:
        self.engine = engine
        self.geometry = geometry
        self.weight = weight
        self.temperature = temperature
        # Every chunk of logits needs it, so it is kept whole: hidden_size * vocab_size elements.
        self.head = engine.output_weight()

    def teach(self, tokens: torch.Tensor) -> Teaching:
        """Return the teacher's final hidden states; logits are made from them chunk by chunk, and never kept."""
        hidden = self.engine.final_hidden(tokens)
        return Teaching(hidden=hidden, head=self.head, weight=self.weight, temperature=self.temperature)


@contextmanager
def open_teacher(job: Job, parent: Path | None) -> Iterator[Teacher | None]:
    """Yield the teacher where the objective asks for one, else None."""
    config = job.config.recover
    weight = {"cross_entropy": 0.0, "distillation": 1.0, "mixed": config.distillation_weight}[config.objective]
    if weight == 0 or parent is None:
        yield None
        return
    with open_engine(parent, job.config.engine, job.group) as engine:
        yield Teacher(engine, geometry_of(parent), weight=weight, temperature=config.temperature)
