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
        phase -> speed_up and wall_speed_up; where the work is given, also `allowed`, the ratio of the parent's work to
        the child's, `reached`, the share of it that the speed-up is, and `reached_beyond_floor`, the same share with
        the floor's time and work taken from both models' (None where nothing is left).
    """
    result = {}
    for phase in PHASES:
        seconds = {role: [each[phase] for each in found] for role, found in turns.items()}
        entry: dict[str, Any] = {"speed_up": _ratio(seconds, clock), "wall_speed_up": _ratio(seconds, "wall")}
        if phase in work:
            allowed = work[phase]["parent"] / work[phase]["child"]
            times = {role: median(getattr(each, clock) for each in found) for role, found in seconds.items()}
            faster, less = _beyond_floor(times), _beyond_floor(work[phase])
            entry |= {
                "allowed": allowed,
                "reached": entry["speed_up"] / allowed,
                "reached_beyond_floor": faster / less if faster and less else None,
            }
        result[phase] = entry
    return result


def _ratio(seconds: Mapping[str, Sequence[Seconds]], clock: str) -> float:
    pairs = zip(seconds["parent"], seconds["child"], strict=True)
    return median(getattr(parent, clock) / getattr(child, clock) for parent, child in pairs)


def _beyond_floor(amounts: Mapping[str, float]) -> float | None:
    """The ratio of what parent and child have above the floor."""
    parent, child = (amounts[role] - amounts["floor"] for role in ("parent", "child"))
    return parent / child if min(parent, child) > 0 else None
