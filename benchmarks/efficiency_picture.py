"""A picture of latency by lengths of prompt and output, the parent beside its cuts, as in TransAct's figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pictures import pyplot, save_picture


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw the picture. The same figures make the same file.

    Args:
        measured: what `transact.evaluation.efficiency.measure` returns, for one batch size.
    """
    clock = measured["settings"]["clock"]
    rows = measured["latency"]
    roles = list(measured["models"])
    width = 0.8 / len(roles)
    with save_picture(path):
        figure, axes = pyplot.subplots(figsize=(10, 4))
        for number, role in enumerate(roles):
            seconds = [row["models"][role]["whole"][f"{clock}_seconds"] for row in rows]
            places = [place + (number - (len(roles) - 1) / 2) * width for place in range(len(rows))]
            axes.bar(places, seconds, width, label=f"{role}: {measured['models'][role]['parameters'] / 1e6:,.1f} M")
        names = [f"{row['prompt_tokens']}+{row['new_tokens']}" for row in rows]
        axes.set_xticks(range(len(rows)), names, rotation=45, ha="right")
        axes.set(xlabel="prompt + new tokens", ylabel=f"seconds of {clock} time")
        axes.set_title(f"{measured['size']} {measured['dtype']}, batch size {rows[0]['batch_size']}")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
        figure.tight_layout()
