"""Quantised variants of the pruned model and of its parent: size, perplexity and speed side by side."""

from __future__ import annotations

from typing import Any

from transact.tracking.report.drawing import MISSING, Block, Named, Note, Section, Table, number, share, size
from transact.tracking.report.run_files import RunFiles, Values, figure, values_in

NOT_QUANTISED = "none"
HEADINGS = [
    "model",
    "weights",
    "of the parent's",
    "perplexity",
    "difference of logits",
    "decode, tokens/s",
    "groups",
]


def quantized_section(run: RunFiles) -> Section | None:
    """Return the table of `transact quantize`; None where it was not run."""
    found = run.quantized.get("rows")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    if not rows:
        return None
    blocks: list[Block] = [Named(title="Pruned, quantised, and both", table=_table(rows)), Note(text=_note(rows))]
    missing = values_in(run.quantized, "settings").get("parent_missing")
    if missing:
        blocks.append(Note(text=f"The parent was not quantised: {missing}."))
    return Section(name="quantised", title="Quantised variants", blocks=blocks)


def _table(rows: list[Values]) -> Table:
    parent = next((row.get("bytes") for row in rows if _is_parent(row)), None)
    return Table(headings=HEADINGS, rows=[_cells(row, parent) for row in rows])


def _is_parent(row: Values) -> bool:
    return row.get("model") == "parent" and row.get("scheme") == NOT_QUANTISED


def _cells(row: Values, parent_bytes: Any) -> list[str]:
    is_model = row.get("scheme") == NOT_QUANTISED
    return [
        str(row.get("model")) if is_model else f"{row.get('model')}, {row.get('scheme')}",
        size(row.get("bytes")),
        share(row.get("bytes"), parent_bytes),
        number(figure(row.get("perplexity"))),
        MISSING if is_model else number(figure(row.get("logit_difference"))),
        number(figure(values_in(row, "speed").get("tokens_per_second"))),
        str(row.get("groups") or MISSING),
    ]


def _note(rows: list[Values]) -> str:
    tokens = max((value for row in rows if (value := figure(row.get("tokens"))) is not None), default=None)
    served = sorted({str(speed.get("in")) for row in rows if (speed := values_in(row, "speed"))})
    decoding = f"decoding by {'; '.join(served)}" if served else "decoding was not measured"
    counted = "" if tokens is None else f", {tokens:,.0f} tokens"
    return (
        f"Perplexity on held-out text of the run{counted}, by transformers, activations rounded as the scheme says; "
        f"difference of logits: its root mean square as a share of that of the logits; {decoding}."
    )
