"""The table at the end of a run."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO


def result_table(result: Mapping[str, Any], stream: TextIO | None = None, width: int = 100) -> None:
    """Prints the dense model and every round of a `result.json`, sliced and recovered.

    Args:
        result: the contents of `result.json`.
        stream: standard output by default.
        width: characters a line may have; a longer one is cut, for a wrapped table is unreadable.
    """
    asked, reached = (result["remove_fraction"][key] for key in ("asked", "reached"))
    wish = "" if asked is None else f", {asked:.1%} asked"
    title = f"{result['name']}: {reached:.1%} of the parameters removed{wish}"
    rows = [("", "parameters", "of dense", "KV bytes/token", "perplexity"), *_rows(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    text = "\n".join(line[:width] for line in [title, rule, lines[0], rule, *lines[1:], rule])
    print(text, file=stream or sys.stdout, flush=True)


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    dense, pruned, rounds = result["dense"], result["pruned"], result["rounds"]
    rows = [_row("dense", dense, dense["perplexity"], dense["parameters"])]
    for record in rounds:
        # The last round is the pruned model, which always knows its KV cache.
        record = {**(pruned if record is rounds[-1] else {}), **record}
        for state in ("sliced", *(["recovered"] if record["tokens"] else [])):
            name = f"round {record['round']} {state}"
            rows.append(_row(name, record, record[f"perplexity_{state}"], dense["parameters"]))
    return rows


def _row(name: str, model: Mapping[str, Any], perplexity: Any, dense: int) -> tuple[str, ...]:
    kv_bytes = model.get("kv_bytes_per_token")
    return (
        name,
        f"{model['parameters']:,}",
        f"{model['parameters'] / dense:.1%}",
        "-" if kv_bytes is None else f"{kv_bytes:,}",
        "-" if perplexity is None else f"{float(perplexity):,.2f}",
    )
