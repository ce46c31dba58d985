"""A mixture whose weights follow the losses of its texts, and the record of how they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transact.data.mixture import MixtureOrder, adapted_weights
from transact.files import read_json
from transact.rounds import Round
from transact.stages.job import Job
from transact.stages.recover.validation import losses_by_text
from transact.stages.texts import Texts


@dataclass(kw_only=True, slots=True)
class AdaptiveMixture:
    """The weights over the whole run.

    Attributes:
        reference: the parent's validation loss on each text, in nats per token.
        changes: training sequence -> weights from there on, in that order.
    """

    reference: list[float]
    changes: list[tuple[int, list[float]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdaptiveMixture:
        changes = [(first, weights) for first, weights in values["changes"]]
        return cls(reference=values["reference"], changes=changes)

    def applied(self, texts: Texts) -> Texts:
        """Return the texts in the order that follows from all changes up to now."""
        assert isinstance(texts.order, MixtureOrder)
        return replace(texts, order=texts.order.with_changes(self.changes))

    def adapt(self, first: int, losses: Sequence[float], initial: Sequence[float]) -> list[float]:
        """Change the weights from a training sequence on, and return them. initial: those of the settings."""
        before = self.changes[-1][1] if self.changes else initial
        weights = adapted_weights(before, losses, self.reference)
        self.changes.append((first, weights))
        return weights


def mixture_before(job: Job, number: int) -> Path | None:
    """Return the file that the last recovery before a round left, None for the first one."""
    earlier = [each.number for each in job.outline.rounds if each.number < number and each.tokens]
    return job.round(earlier[-1]).mixture if earlier else None


def begin_adaptive(job: Job, texts: Texts, round_: Round, parent: Path) -> AdaptiveMixture:
    """Return the mixture as the recovery before left it, or measure the parent for the first one (collective)."""
    before = mixture_before(job, round_.number)
    if before is not None:
        return AdaptiveMixture.from_dict(job.group.on_main(lambda: read_json(before)))
    size = job.config.recover.validation_sequences * texts.train.sequence_length
    with job.borrow(parent) as engine, job.progress("validate the parent", size, share=(0.0, 0.0)) as bar:
        reference = losses_by_text(job, texts, engine, bar.advance)
    job.engine.close()
    return AdaptiveMixture(reference=reference)
