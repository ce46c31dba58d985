"""Checkpoints of a recovery: a job that dies resumes from the newest one that is not damaged."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transact.config.machines import MOST_SAVING, CheckpointEveryConfig
from transact.engine.training_checkpoints import MANIFEST, checkpoint_folders, damage, set_aside
from transact.files import read_json
from transact.rounds import Round
from transact.runs.run_folder import CHECKPOINTS
from transact.stages.job import Job
from transact.stages.recover.health import TrainingHealth


@dataclass(kw_only=True, slots=True)
class Position:
    """The position of one round's recovery.

    Attributes: step: optimizer steps done, of this round; the next global batch follows from it, and so does the
    learning rate. best_loss: the lowest validation loss, in nats per token, met after best_step steps. validated_step:
    the step of the last validation that was completed. rate_factor: of the learning rate, lowered whenever the loss has
    risen. mixture: of a mixture whose weights adapt, as `AdaptiveMixture.to_dict`. made_of: digest of the model that
    training began with.
    """

    step: int = 0
    best_loss: float
    best_step: int = 0
    validated_step: int = 0
    rate_factor: float = 1.0
    health: TrainingHealth = field(default_factory=TrainingHealth)
    mixture: dict[str, Any] | None = None
    made_of: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def at_start(cls, loss: float, mixture: dict[str, Any] | None = None) -> Position:
        """Return the position at the start of a round. loss: validation loss, in nats per token."""
        return cls(best_loss=loss, mixture=mixture)

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Position:
        health = TrainingHealth(**manifest["health"])
        names = ("step", "best_loss", "best_step", "validated_step")
        lowered = manifest.get("rate_factor", 1.0)  # checkpoints of earlier versions have none
        mixture = manifest.get("mixture")
        return cls(health=health, rate_factor=lowered, mixture=mixture, **{name: manifest[name] for name in names})


class CheckpointClock:
    """A clock that says when the next checkpoint is due: so many tokens or so many minutes after the last one.

    Where saves are slow the minutes are stretched, so that they never cost more than a twentieth of the time.
    """

    def __init__(self, every: CheckpointEveryConfig) -> None:
        self._every = every
        self._tokens = 0
        self._since = time.monotonic()
        self._fewest_seconds = 0.0

    def is_due(self, tokens: int) -> bool:
        """Count one step and return whether a checkpoint is due. tokens: of the step."""
        self._tokens += tokens
        minutes, limit = self._every.minutes, self._every.tokens
        by_time = minutes is not None and time.monotonic() - self._since >= max(60 * minutes, self._fewest_seconds)
        return by_time or (limit is not None and self._tokens >= limit)

    def restart(self, save_seconds: float) -> None:
        """Count anew from a checkpoint that is now complete. save_seconds: the time that saving it took."""
        self._tokens, self._since = 0, time.monotonic()
        self._fewest_seconds = save_seconds * (1 / MOST_SAVING - 1)


def checkpoint_path(job: Job, round_: Round, step: int) -> Path:
    return job.path(CHECKPOINTS, f"{round_.folder_name}_step_{step:08d}")


def newest_checkpoint(job: Job, round_: Round, made_of: str) -> tuple[Path, dict[str, Any]] | None:
    """Return this round's newest usable checkpoint and its manifest, None if there is none (collective).

    Damaged ones, and those of a training that began with other weights, are logged and set aside until the recovery
    ends: they would count among the few that are kept.

    Args:
        made_of: digest of the model that training begins with; a repair of earlier stages may have changed it.
    """

    def names() -> list[str]:
        return [folder.name for folder in checkpoint_folders(job.path(CHECKPOINTS), f"{round_.folder_name}_")]

    for name in job.group.on_main(names):
        folder = job.path(CHECKPOINTS, name)
        problem = damage(folder, job.group)
        if problem is None:
            # On rank 0 alone, which may rename the folder before others have read it.
            manifest: dict[str, Any] = job.group.on_main(partial(read_json, folder / MANIFEST))
            if manifest.get("made_of", made_of) == made_of:  # those of earlier versions do not say
                job.say(f"goes on from checkpoint {name}")
                return folder, manifest
            job.say(f"checkpoint {name} is of a training that began with another model: not used, and set aside")
        else:
            job.say(f"checkpoint {name} is damaged ({problem}): not used, and set aside")
        if job.group.is_main:
            set_aside(folder)
    return None


def clear_checkpoints(job: Job, round_: Round) -> None:
    """Remove a round's checkpoints after its recovery, and no others: a later round may resume from its own."""
    if job.group.is_main:
        job.folder.remove_checkpoints(round_.folder_name)
