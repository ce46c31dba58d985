"""Keep the figures of a run's quantised variants, as `transact quantize` left them, for the table in docs/export.md.

python -m transact quantize RUN --python PYTHON --vllm PYTHON --schemes w4a16 fp8 --sequences 16
python -m benchmarks.quantized RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.workload import RESULTS, write_result
from transact.files import read_json
from transact.quantize.table import markdown_table

FIGURES = ("model", "scheme", "groups", "parameters", "bytes", "perplexity", "logit_difference", "tokens", "speed")


def quantized_markdown(result: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    return markdown_table(result["rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantized.json")
    arguments = parser.parse_args()
    found = read_json(arguments.run / "quantized" / "comparison.json")
    rows = [{name: row[name] for name in FIGURES} for row in found["rows"]]
    settings = found["settings"] | {"packages": found["rows"][0]["versions"]}
    write_result(arguments.output, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
