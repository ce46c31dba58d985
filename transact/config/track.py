"""Where figures go besides metrics.jsonl: conf/track/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require_at_least, require_choice, require_positive

TRACK_MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    mode: str = "auto"
    """W&B: "auto" (online with a key and a network, else offline), "online", "offline" or "disabled"."""
    project: str = "transact"
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team. null: W&B's default for the key."""
    group: str | None = None
    """The W&B group. null: none, or for the points of a sweep the run's name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, besides those that say what the run does."""
    progress_seconds: float = 60.0
    """Seconds between two lines of a loop in a log file."""
    report_seconds: float = 120.0
    """Seconds between two versions of report.html while the run goes on; 0: it is written at the end alone."""

    def __post_init__(self) -> None:
        require_choice("track.mode", self.mode, TRACK_MODES)
        require_positive("track", self, "progress_seconds")
        require_at_least("track", self, 0, "report_seconds")
