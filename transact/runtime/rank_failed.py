"""What a rank raises when the work of another one failed."""

from __future__ import annotations


class RankFailed(RuntimeError):
    """The failure is another rank's, which raises its own error and tells the user.

    Args:
        rank: the one that failed.
        reason: its error in words.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} failed: {reason}")
