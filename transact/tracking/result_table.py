"""The tables at the end of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from transact.config.inputs import NO_METRICS, of_what, trained_on
from transact.errors import printable
from transact.pruning.limits import limit_words

UNKNOWN = "-"
SHARES_OF_DOCUMENTS = ("acc", "acc_norm", "exact_match")  # each document scores 0 or 1


def standard_error(metric: str, value: float, documents: float | None) -> float | None:
    """Return the standard error of a mean over documents that are each right or wrong, or None for other metrics.

    It is exactly what the spread of the sample gives: sqrt(value (1 - value) / (documents - 1)).
    """
    if metric.partition(",")[0] not in SHARES_OF_DOCUMENTS or not documents or documents < 2 or not 0 <= value <= 1:
        return None
    return math.sqrt(value * (1 - value) / (documents - 1))


def score_text(metric: str, metrics: Mapping[str, float | None]) -> str:
    """Format a score with its standard error, where there is one: "0.4120 +- 0.0156"."""
    value = metrics[metric]
    if value is None:  # not a number, or infinite, which JSON has not
        return UNKNOWN
    error = standard_error(metric, value, metrics.get("documents"))
    return f"{value:.4f}" + ("" if error is None else f" +- {error:.4f}")


WIDTH = 100


def result_table(result: Mapping[str, Any], stream: TextIO | None = None, width: int = WIDTH, point: str = "") -> None:
    """Print the dense model and every round of a `result.json`, sliced and recovered.

    Below them stand the texts and tasks that the dense and the last model were measured on.

    Args:
        result: the contents of `result.json`.
        stream: standard output by default.
        width: most characters of a line; a longer one is cut, because a wrapped table is unreadable.
        point: name of a point of a sweep, shown in the title too.
    """
    asked, reached = (result["remove_fraction"][key] for key in ("asked", "reached"))
    wish = "" if asked is None else f", {asked:.1%} asked"
    name = " ".join(filter(None, (result["name"], point)))
    title = f"{name}: {reached:.1%} of the parameters removed{wish}" if result["rounds"] else f"{name}: trained"
    budget = [limit_words(*each) for each in result.get("budget", {}).items()]
    of = of_what(result["dense"])
    said = [f"perplexity is that{of}"] if of else []  # no heading: it would push figures over the width
    said += [name + note for name, each in result["dense"].get("texts", {}).items() if (note := trained_on(each))]
    heading = ("", "parameters", "of dense", "KV bytes/token", "perplexity")
    lines = [title, *budget, *said, *_table([heading, *_rows(result)])]
    compared = _compared(result)
    if compared:
        lines += _table([("text or task", "metric", "dense", "pruned"), *compared])[1:]  # the rule is there already
    print(printable("\n".join(line[:width] for line in lines)), file=stream or sys.stdout, flush=True)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(head)
    return [rule, head, rule, *lines, rule]


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    dense, pruned, rounds = result["dense"], result["pruned"], result["rounds"]
    rows = [_row("dense", dense, dense["perplexity"], dense["parameters"])]
    for record in rounds:
        # The last round is the pruned model, whose KV cache is always known.
        record = {**(pruned if record is rounds[-1] else {}), **record}
        for state in ("sliced", "recovered") if record["tokens"] else ("sliced",):
            name = f"round {record['round']} {state}"
            rows.append(_row(name, record, record[f"perplexity_{state}"], dense["parameters"]))
    return rows


def _row(name: str, model: Mapping[str, Any], perplexity: Any, dense: int) -> tuple[str, ...]:
    kv_bytes = model.get("kv_bytes_per_token")
    return (
        name,
        f"{model['parameters']:,}",
        f"{model['parameters'] / dense:.1%}",
        UNKNOWN if kv_bytes is None else f"{kv_bytes:,}",
        _perplexity(perplexity),
    )


def _perplexity(value: Any) -> str:
    return UNKNOWN if value is None else f"{float(value):,.2f}"


def _compared(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    dense, pruned = result["dense"], result["pruned"] or {}
    rows: list[tuple[str, ...]] = []
    for name, found in dense.get("texts", {}).items():
        before, after = found["perplexity"], pruned.get("texts", {}).get(name, {}).get("perplexity")
        rows.append((name, f"perplexity{of_what(found)}", _perplexity(before), _perplexity(after)))
    for name, found in dense.get("tasks", {}).items():
        other = pruned.get("tasks", {}).get(name, {})
        for metric in found:
            if metric not in NO_METRICS:
                shown = score_text(metric, other) if metric in other else UNKNOWN
                rows.append((name, metric, score_text(metric, found), shown))
    return rows
