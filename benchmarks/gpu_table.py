"""The table of what was checked and measured on GPUs, of the results files of `benchmarks.gpu_check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.workload import RESULTS
from transact.files import read_json

HEAD = "| GPU | check | result | what was found |\n|---|---|---|---|\n"
NOTHING = "| none so far | | not run | nothing was measured on a GPU: what is said of GPUs is estimated |\n"


def gpu_results() -> list[dict[str, Any]]:
    """Return the contents of all results files of GPUs, in the order of their names."""
    return [read_json(path) for path in sorted(Path(RESULTS).glob("gpu_*.json"))]


def gpu_markdown(results: Iterable[dict[str, Any]]) -> str:
    """Return the table; without results it says that there are none."""
    return HEAD + ("".join(row for result in results for row in _rows(result)) or NOTHING)


def _rows(result: dict[str, Any]) -> Iterator[str]:
    device = f"{result['world_size']} x {result['device']}"
    for part, entry in result["parts"].items():
        for name, section in entry["sections"].items():
            said = section["said"].replace("|", "\\|")
            yield f"| {device} | {part}: {name.replace('_', ' ')} | {section['state']} | {said} |\n"
