"""What a rank raises when the work of another one failed."""

from __future__ import annotations


class RankFailed(RuntimeError):
    """Says which rank and why. That rank raises its own error, and tells the user."""
