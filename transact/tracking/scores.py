"""Scores of tasks as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

COUNTS = ("documents", "shots", "tokens", "documents_trained_on")  # beside a metric, not metrics themselves
SHARES_OF_DOCUMENTS = ("acc", "acc_norm", "exact_match")  # 0 or 1 for each


def standard_error(metric: str, value: float, documents: float | None) -> float | None:
    """Of a mean over documents that are each right or wrong: exactly what a sample's spread gives; else None."""
    if metric.partition(",")[0] not in SHARES_OF_DOCUMENTS or not documents or documents < 2 or not 0 <= value <= 1:
        return None
    return math.sqrt(value * (1 - value) / (documents - 1))


def score_text(metric: str, metrics: Mapping[str, float]) -> str:
    """ "0.4120 +- 0.0156": with the standard error where there is one."""
    value = metrics[metric]
    error = standard_error(metric, value, metrics.get("documents"))
    return f"{value:.4f}" + ("" if error is None else f" +- {error:.4f}")
