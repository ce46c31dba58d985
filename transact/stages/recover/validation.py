"""The validation loss that a recovery is judged by, and what it is made of in a mixture."""

from __future__ import annotations

from collections.abc import Callable

import torch

from transact.data.training_text import JoinedStores
from transact.engine.engine import Engine
from transact.stages.evaluate import mean_loss
from transact.stages.job import Job
from transact.stages.texts import Texts


def validation_positions(job: Job, texts: Texts) -> torch.Tensor:
    """Return (validation_sequences,) positions of the reserved part of the training text."""
    return texts.order.reserved(0, job.config.recover.validation_sequences)


def validation_loss(
    job: Job, texts: Texts, engine: Engine, advance: Callable[[int], object] = lambda tokens: None
) -> float:
    """Return the loss on the reserved part of the training text, in nats per token. advance: as in `mean_loss`."""
    return mean_loss(
        engine, texts.train, validation_positions(job, texts), job.config.engine.micro_batch, job.group, advance
    )


def validation_losses(
    job: Job, texts: Texts, engine: Engine, advance: Callable[[int], object] = lambda tokens: None
) -> tuple[float, list[float]]:
    """Return `validation_loss`, and where weights adapt the loss on each text of the mixture, else none."""
    if not job.config.data.train.adaptive:
        return validation_loss(job, texts, engine, advance), []
    losses = losses_by_text(job, texts, engine, advance)
    targets = [texts.train.num_targets(positions) for positions in _positions_by_text(job, texts)]
    return sum(loss * count for loss, count in zip(losses, targets, strict=True)) / sum(targets), losses


def losses_by_text(
    job: Job, texts: Texts, engine: Engine, advance: Callable[[int], object] = lambda tokens: None
) -> list[float]:
    """Return the validation loss on each text of a mixture, in nats per token (collective).

    advance: as in `mean_loss`.
    """
    return [
        mean_loss(engine, texts.train, positions, job.config.engine.micro_batch, job.group, advance)
        for positions in _positions_by_text(job, texts)
    ]


def _positions_by_text(job: Job, texts: Texts) -> list[torch.Tensor]:
    """Return the validation positions of each text of a mixture."""
    assert isinstance(texts.train, JoinedStores)
    return texts.train.by_store(validation_positions(job, texts))
