"""Where figures go besides metrics.jsonl: conf/track/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.config.setting import setting

TRACK_MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    mode: str = setting("auto", choices=TRACK_MODES)
    """W&B: "auto" (online with a key and a network, else offline), "online", "offline" or "disabled"."""
    project: str | None = setting(None, longest=128, pattern=r"[^/\\#?%:]+", words="a name without / \\ # ? % :")
    """The W&B project. null: WANDB_PROJECT, or else transact."""
    run_name: str | None = setting(None, longest=128)
    """The run's name in W&B. null: WANDB_NAME, or else that of the run."""
    notes: str | None = setting(None)
    """W&B notes on the run. null: WANDB_NOTES, or else none."""
    entity: str | None = setting(None, longest=128)
    """The W&B user or team. null: WANDB_ENTITY, or else W&B's default for the key."""
    group: str | None = setting(None, longest=128)
    """The W&B group. null: WANDB_RUN_GROUP, or else none; for the points of a
    sweep the run's name."""
    tags: list[str] = setting(factory=list, entries=(0, 50))
    """W&B tags, besides those that say what the run does; where there are none, those in WANDB_TAGS."""
    progress_seconds: float = setting(60.0, above=0, at_most=86_400)
    """Seconds between two lines of a loop in a log file."""
    report_seconds: float = setting(120.0, at_least=0, at_most=86_400)
    """Seconds between two versions of report.html while the run goes on; 0: it is written at the end alone."""
