"""The table of quantised variants beside the models that they were made of: as text, and for a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = ("model", "MB on disk", "perplexity", "difference of logits", "decode, tokens/s")
NOT_QUANTISED = "none"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of comparison.json."""
    is_model = row["scheme"] == NOT_QUANTISED
    speed = row["speed"]
    return [
        row["model"] if is_model else f"{row['model']}, {row['scheme']}",
        f"{row['bytes'] / 1e6:,.1f}",
        f"{row['perplexity']:,.2f}",
        "" if is_model else f"{row['logit_difference']:.3f}",
        "-" if speed is None else f"{speed['tokens_per_second']:,.1f}",
    ]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in aligned columns."""
    table = [list(HEADINGS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
    return "\n".join(line.rstrip() for line in lines)


def settings_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how the figures of the table were measured."""
    tokens = max((row["tokens"] for row in rows), default=0)
    served = sorted({row["speed"]["in"] for row in rows if row["speed"] is not None})
    speed = f"decoding by {'; '.join(served)}" if served else "decoding was not measured"
    return (
        f"Perplexity on the held-out text of the run ({tokens:,} tokens predicted) by transformers, activations "
        "rounded as the scheme says; difference of logits: its root mean square as a share of that of the logits; "
        f"{speed}."
    )
