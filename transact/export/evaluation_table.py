"""Perplexities and metrics of tasks, dense and pruned side by side, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTS = ("documents", "shots", "tokens")  # beside a metric, not metrics themselves


def evaluation_table(summary: Mapping[str, Any]) -> str:
    """summary: as in result.json. Empty where nothing more than the perplexity on data.evaluation was measured."""
    dense, pruned = summary["dense"], summary["pruned"]
    rows = [
        f"| {name}{_shots(found)} | {metric} | {_figure(value)} | {_figure(pruned[kind][name][metric])} |"
        for kind in ("texts", "tasks")
        for name, found in dense.get(kind, {}).items()
        for metric, value in found.items()
        if pruned is not None and metric not in COUNTS
    ]
    if not rows:
        return ""
    return "\n".join(["| text or task | metric | dense | pruned |", "|---|---|---|---|", *rows]) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _shots(found: Mapping[str, Any]) -> str:
    return f" ({found['shots']}-shot)" if found.get("shots") else ""
