"""Measure what every type of GGUF file takes and keeps of model folders, in llama.cpp, beside the folder itself.

    python -m benchmarks.gguf_files --models parent=FOLDER pruned=FOLDER --text FILE.txt

The perplexity of a file is llama.cpp's, that of the folder transformers' in float32, on the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.workload import RESULTS, num_cores, write_result
from transact.config.outputs import GGUF_TYPES
from transact.errors import DONE, leave
from transact.export.gguf import write_gguf
from transact.export.in_llama_cpp import Llama, next_token_losses
from transact.export.k_quants import K_QUANTS, write_k_quants

FOLDER = "folder, float32"


def measure(folder: Path, sequences: list[list[int]], threads: int) -> list[dict[str, Any]]:
    """Return bytes and perplexity of the folder and of every type of file of it."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    rows = [{"type": FOLDER, "bytes": size, "perplexity": _of_folder(folder, sequences)}]
    for kind in GGUF_TYPES[1:]:
        with tempfile.TemporaryDirectory() as where:
            file = Path(where, "model.gguf")
            (write_k_quants if kind in K_QUANTS else write_gguf)(folder, file, kind, "model")
            rows.append({"type": kind, "bytes": file.stat().st_size, "perplexity": _of_file(file, sequences, threads)})
        print(rows[-1], flush=True)
    return rows


def _of_folder(folder: Path, sequences: list[list[int]]) -> float:
    import torch

    from transact.models.stock import load_model

    model = load_model(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [model(torch.tensor([each]), labels=torch.tensor([each])).loss for each in sequences]
    return float(torch.stack(losses).mean().exp())


def _of_file(file: Path, sequences: list[list[int]], threads: int) -> float:
    model = Llama(file, len(sequences[0]), threads)
    losses = []
    for each in sequences:
        model.forget()
        losses += next_token_losses(model.logits(each), each)
    model.close()
    return math.exp(mean(losses))


def gguf_markdown(result: dict[str, Any]) -> str:
    """Return a Markdown table: size and perplexity of every type, a pair of columns for each model."""
    models = result["models"]
    headings = ["in llama.cpp", *(f"{name}: {figure}" for name in models for figure in ("MB", "perplexity"))]
    kinds = [row["type"] for row in next(iter(models.values()))["rows"]]
    lines = [headings, ["---"] * len(headings)]
    for place, kind in enumerate(kinds):
        rows = [model["rows"][place] for model in models.values()]
        figures = [(f"{row['bytes'] / 1e6:.0f}", f"{row['perplexity']:.2f}") for row in rows]
        lines.append([kind, *itertools.chain.from_iterable(figures)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="with one tokenizer")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--output", type=Path, default=RESULTS / "gguf_files.json")
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    folders = dict(each.split("=", 1) for each in arguments.models)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(folders.values())), model_max_length=10**9)
    length = arguments.sequence_length
    tokens = tokenizer(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    if len(tokens) < length * arguments.sequences:
        parser.error(f"--text has {len(tokens):,} tokens; {length * arguments.sequences:,} are asked for")
    sequences = [tokens[start * length :][:length] for start in range(arguments.sequences)]
    models = {name: {"rows": measure(Path(folder), sequences, arguments.threads)} for name, folder in folders.items()}
    settings = {"text": arguments.text.name, "sequences": len(sequences), "sequence_length": length}
    write_result(arguments.output, {"settings": settings, "models": models})


if __name__ == "__main__":
    main()
    leave(DONE)
