"""The rows of the quality benchmark as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

Row = dict[str, Any]


def quality_table(result: dict[str, Any]) -> str:
    """Return means over seeds: a table of one-shot perplexities, and one after recovery."""
    rows = result["rows"]
    parts = [
        _table(
            "Cut once, no recovery",
            result["parent"],
            [row for row in rows if row["tokens"] == 0],
            lambda row: row["perplexity_one_shot"],
        )
    ]
    recovered = [row for row in rows if row["tokens"] > 0]
    if recovered:
        title = f"After recovery on {recovered[0]['tokens']:,} tokens"
        parts.append(_table(title, result["parent"], recovered, lambda row: row["perplexity_recovered"]))
    return "\n".join(parts)


def _table(title: str, parent: dict[str, float], rows: list[Row], figure: Callable[[Row], float]) -> str:
    texts, fractions = list(parent), sorted({row["fraction"] for row in rows})
    columns = [(text, fraction) for text in texts for fraction in fractions]
    lines = [
        f"| {title} | "
        + " | ".join(f"{fraction:.0%} {_short(text)}" for text, fraction in columns)
        + " | KV at 50 % |",
        "|---|" + "---|" * (len(columns) + 1),
        "| dense parent | " + " | ".join(f"{parent[text]:.2f}" for text, _ in columns) + " | 100 % |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = []
        for text, fraction in columns:
            found = [figure(row) for row in own if row["text"] == text and row["fraction"] == fraction]
            cells.append(f"{mean(found):.2f}" if found else "")
        mark = "" if own[0]["stock"] else " (not stock)"
        lines.append(f"| {method}{mark} | " + " | ".join(cells) + f" | {_cache_share(own)} |")
    return "\n".join(lines) + "\n"


def _cache_share(rows: list[Row]) -> str:
    """Return the mean KV-cache bytes at half of the transitional parameters, as a share of the parent's."""
    half = [row["kv_bytes_per_token"] / row["parent_kv_bytes_per_token"] for row in rows if row["fraction"] == 0.5]
    return f"{mean(half):.0%}" if half else ""


def _short(text: str) -> str:
    return {"python_heldout": "Python", "package_descriptions": "prose"}.get(text, text)
