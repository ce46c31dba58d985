"""From the seconds of every turn to medians, and to the speed-up beside the one that the removed work allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """What one piece of work took. processor: of the thread that computes, or of the process if there are several."""

    processor: float
    wall: float

    @classmethod
    def between(cls, start: tuple[float, float], end: tuple[float, float], pieces: int = 1) -> Seconds:
        return cls(processor=(end[0] - start[0]) / pieces, wall=(end[1] - start[1]) / pieces)


Turn = Mapping[str, Seconds]  # phase -> what it took
PHASES = ("prefill", "decode", "whole")  # decode: of one step; whole: the latency of prefill and all steps


def medians(turns: Sequence[Turn]) -> dict[str, Any]:
    """Seconds of each phase by both clocks."""
    return {
        phase: {
            "processor_seconds": median(turn[phase].processor for turn in turns),
            "wall_seconds": median(turn[phase].wall for turn in turns),
        }
        for phase in PHASES
    }


def speed_ups(
    turns: Mapping[str, Sequence[Turn]], work: Mapping[str, Mapping[str, float]], clock: str
) -> dict[str, dict[str, Any]]:
    """Per phase: how many times as fast the child is; medians of the ratios within one turn.

    Args:
        turns: of "parent", "child" and "floor", a model with all of the work that no cut removes and no other.
        work: phase -> FLOPs or bytes of the same three.
        clock: "processor" or "wall": what counts.

    Returns:
        phase -> speed_up and wall_speed_up. Where the work is given, also `allowed`, the ratio of the parent's work to
        the child's, and `possible`, the same if the floor's share of the time stays; and which part of each the
        speed-up is: `reached`, `reached_of_possible` (None where the parent is no slower than the floor).
    """
    result = {}
    for phase in PHASES:
        seconds = {role: [each[phase] for each in found] for role, found in turns.items()}
        entry: dict[str, Any] = {"speed_up": _ratio(seconds, clock), "wall_speed_up": _ratio(seconds, "wall")}
        if phase in work:
            allowed = work[phase]["parent"] / work[phase]["child"]
            possible = _possible(
                {role: median(getattr(each, clock) for each in seconds[role]) for role in seconds}, work[phase]
            )
            entry |= {
                "allowed": allowed,
                "reached": entry["speed_up"] / allowed,
                "possible": possible,
                "reached_of_possible": None if possible is None else entry["speed_up"] / possible,
            }
        result[phase] = entry
    return result


def _ratio(seconds: Mapping[str, Sequence[Seconds]], clock: str) -> float:
    pairs = zip(seconds["parent"], seconds["child"], strict=True)
    return median(getattr(parent, clock) / getattr(child, clock) for parent, child in pairs)


def _possible(seconds: Mapping[str, float], work: Mapping[str, float]) -> float | None:
    """The parent's time beyond the floor shrinks with the work beyond the floor, and the floor's time stays."""
    beyond = seconds["parent"] - seconds["floor"]
    if beyond <= 0:
        return None
    kept = (work["child"] - work["floor"]) / (work["parent"] - work["floor"])
    return seconds["parent"] / (seconds["floor"] + beyond * kept)
