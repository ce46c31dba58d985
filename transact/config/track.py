"""Where figures go besides metrics.jsonl: conf/track/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require_choice, require_positive

TRACK_MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    mode: str = "auto"
    project: str = "transact"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    progress_seconds: float = 60.0  # between two lines in a log file

    def __post_init__(self) -> None:
        require_choice("track.mode", self.mode, TRACK_MODES)
        require_positive("track", self, "progress_seconds")
