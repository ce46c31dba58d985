"""Figures as people read them."""

from __future__ import annotations

import math
import time
from typing import Any

from transact.tracking.report.metric_rows import figure

MISSING = "-"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BYTE_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def number(value: Any) -> str:
    """All digits of a whole number, four of another one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    found = figure(value)
    if found is None:
        return value if isinstance(value, str) else MISSING
    if found == 0 or 1e-3 <= abs(found) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(found)))) if found else 0
        return f"{found:,.{digits}f}"
    return f"{found:.3e}"


def short(value: Any) -> str:
    """6.74B, 524k."""
    found = figure(value)
    if found is None:
        return MISSING
    for size, unit in UNITS:
        if abs(found) >= size:
            return f"{found / size:.3g}{unit}"
    return f"{found:.4g}"


def size(value: Any) -> str:
    found = figure(value)
    if found is None:
        return MISSING
    for unit, name in BYTE_UNITS:
        if abs(found) >= unit:
            return f"{found / unit:.4g} {name}"
    return f"{found:.0f} bytes"


def share(part: Any, whole: Any) -> str:
    """In per cent."""
    above, below = figure(part), figure(whole)
    return MISSING if above is None or not below else f"{above / below:.1%}"


def duration(seconds: Any) -> str:
    found = figure(seconds)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.3g} s"
    minutes = round(found / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(seconds: float) -> str:
    """Unix seconds as date and time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def significant(value: float, digits: int = 5) -> float:
    """Fewer digits: a page has many figures."""
    return float(f"{value:.{digits}g}")
