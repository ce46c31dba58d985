"""Latency of a model from a table of its layers' parts, measured on the machine that serves it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from transact.geometry import Geometry

SETTINGS = ("machine", "dtype", "clock", "threads", "turns", "batch_size", "prompt_tokens", "new_tokens")
Curve = tuple[tuple[int, float], ...]  # width, milliseconds; ascending in both


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """Milliseconds of one phase, as a sum over layers of what their attention and their MLP take.

    Attributes:
        attention: of one layer's attention, by the width of its keys, num_key_value_heads * head_dim.
        mlp: of one layer's MLP, by intermediate_size.
        rest: of all that is no layer.
        settings: of the measurement, by the names in `SETTINGS`.
    """

    attention: Curve
    mlp: Curve
    rest: float
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def milliseconds(self, geometry: Geometry) -> float:
        """Return the latency of a model. It never falls where a dimension grows, within the widths of the table."""
        layers = (
            interpolated(self.attention, each.num_key_value_heads * geometry.head_dim)
            + interpolated(self.mlp, each.intermediate_size)
            for each in geometry.widths()
        )
        return self.rest + sum(layers)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], phase: str, parent: Geometry) -> LatencyTable:
        """Read one phase of a table that `transact efficiency --calibrate` wrote.

        Raises:
            ValueError: it is no such table, or one of another model.
        """
        try:
            measured = Geometry.from_dict(values["geometry"])
            found = values["phases"][phase]
            curves = {
                name: rising([(int(width), _time(ms)) for width, ms in found[name]]) for name in ("attention", "mlp")
            }
            settings = {name: values["settings"][name] for name in SETTINGS}
            table = cls(**curves, rest=_time(found["rest"]), settings=settings)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            raise ValueError("it is no table that `transact efficiency --calibrate` wrote") from None
        if measured != parent:
            raise ValueError(f"it was measured for another model: {_difference(measured, parent)}")
        return table


def rising(points: Sequence[tuple[int, float]]) -> Curve:
    """Return a curve that never falls: each width takes at least as long as all below it, which noise may hide."""
    ordered = sorted(points)
    if not ordered:
        raise ValueError("a curve without points")
    return tuple(zip((width for width, _ in ordered), accumulate((ms for _, ms in ordered), max), strict=True))


def _time(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no time")
    return number


def interpolated(curve: Curve, width: int) -> float:
    """Return the milliseconds of a width: on the straight line between its neighbours, or at the nearer end."""
    place = bisect_left(curve, width, key=lambda point: point[0])
    if place == 0:
        return curve[0][1]
    if place == len(curve):
        return curve[-1][1]
    (low, before), (high, after) = curve[place - 1], curve[place]
    return before + (after - before) * (width - low) / (high - low)


def _difference(measured: Geometry, parent: Geometry) -> str:
    one, other = measured.to_dict(), parent.to_dict()
    return ", ".join(
        f"{name} {one.get(name)} instead of {other.get(name)}" for name in other if one.get(name) != other[name]
    )
