"""The rows of the efficiency benchmark as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.efficiency_breakdown import KINDS
from transact.evaluation.efficiency.measure import PARENT

MIB = 1024**2
COLUMNS = (
    "model",
    "removed",
    "batch",
    "prefill ms",
    "speed-up",
    "of allowed",
    "decode ms",
    "speed-up",
    "of allowed",
    "KV bytes/token",
    "peak MiB",
)


def efficiency_markdown(result: dict[str, Any]) -> str:
    """Return a table with one line for each model, fraction and batch size; decode is one step."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for measured in result["sizes"]:
        clock = measured["settings"]["clock"]
        for row in measured["latency"]:
            for role in measured["models"]:
                model = row["models"][role]
                cells = [f"{measured['size']} {measured['dtype']}", role.removesuffix(" removed"), row["batch_size"]]
                for phase in ("prefill", "decode"):
                    cells.append(f"{1000 * model[phase][f'{clock}_seconds']:.1f}")
                    cells += _speed_up(row["speed_ups"].get(role, {}).get(phase))
                cells.append(f"{measured['models'][role]['kv_bytes_per_token']:,}")
                cells.append(f"{model['peak_bytes'] / MIB:,.0f}")
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines).replace(f"| {PARENT} |", "| nothing |") + "\n"


def breakdown_markdown(result: dict[str, Any]) -> str:
    """Return a table of milliseconds of a forward of one sequence by kind of work.

    Its last column has the speed-up of the matrix products alone, the allowed one, and the share reached.
    """
    columns = ("model", "removed", "phase", *(kind.replace("_", " ") for kind in KINDS), "products' speed-up")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for measured in result["sizes"]:
        for row in measured["breakdown"]:
            cells = [f"{measured['size']} {measured['dtype']}", row["model"].removesuffix(" removed"), row["phase"]]
            cells += [f"{1000 * row['seconds'][kind]:.2f}" for kind in KINDS]
            reached, allowed = row.get("products_speed_up"), row.get("products_allowed")
            cells.append("" if reached is None else f"{reached:.2f} of {allowed:.2f}: {reached / allowed:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace(f"| {PARENT} |", "| nothing |") + "\n"


def _speed_up(entry: dict[str, Any] | None) -> list[str]:
    """Return two cells: the speed-up and the allowed one, and the share of it that is reached."""
    if entry is None:
        return ["", ""]
    return [f"{entry['speed_up']:.2f} of {entry['allowed']:.2f}", f"{entry['reached']:.2f}"]
