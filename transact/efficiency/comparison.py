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
    parent: Sequence[Turn], child: Sequence[Turn], overhead: Sequence[Turn], allowed: Mapping[str, float], clock: str
) -> dict[str, Any]:
    """Per phase: how many times as fast the child is; medians of the ratios within one turn.

    Args:
        overhead: turns of a model that has no work to do.
        allowed: prefill and decode -> the ratio of the parent's work to the child's.
        clock: "processor" or "wall": what `speed_up` is measured by.

    Returns:
        phase -> speed_up, wall_speed_up, and where there is an allowed one, the share of it that is reached, once as
        it is and once with the overhead taken from both.
    """
    result: dict[str, Any] = {}
    for phase in PHASES:

        def ratio(name: str, phase: str = phase) -> float:
            return median(
                getattr(ours[phase], name) / getattr(theirs[phase], name)
                for ours, theirs in zip(parent, child, strict=True)
            )

        entry: dict[str, Any] = {"speed_up": ratio(clock), "wall_speed_up": ratio("wall")}
        if phase in allowed:
            beyond = _beyond_overhead(parent, child, overhead, phase, clock)
            entry |= {
                "allowed": allowed[phase],
                "reached": entry["speed_up"] / allowed[phase],
                "reached_beyond_overhead": None if beyond is None else beyond / allowed[phase],
            }
        result[phase] = entry
    return result


def _beyond_overhead(
    parent: Sequence[Turn], child: Sequence[Turn], overhead: Sequence[Turn], phase: str, clock: str
) -> float | None:
    """The speed-up of what is left when the overhead is taken from both; None where nothing is left."""
    ours, theirs, empty = (median(getattr(turn[phase], clock) for turn in each) for each in (parent, child, overhead))
    return (ours - empty) / (theirs - empty) if min(ours, theirs) > empty else None
