"""Quantise a model folder with llm-compressor, or measure one with transformers: runs in llm-compressor's environment.

    python in_llmcompressor.py QUESTION.json ANSWER.json

QUESTION: {"action": a function below, and its arguments}; ANSWER: what it returns. Imports nothing of transact, which
needs another version of transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
SHARD = "4GB"


def versions() -> dict[str, Any]:
    """Return the version of each package, None where it is missing, and what computes."""
    found: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {"packages": found, "device": None if found["torch"] is None else _device()}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quantize(
    folder: str, output: str, dtype: str, modifier: str, arguments: dict[str, Any], tokens: str | None
) -> dict[str, Any]:
    """Write the quantised model. tokens: a file with the sequences that calibrate; None where nothing is calibrated."""
    from datasets import Dataset
    from llmcompressor import modifiers, oneshot
    from llmcompressor.modifiers import gptq, quantization
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    kinds = {"GPTQModifier": gptq.GPTQModifier, "QuantizationModifier": quantization.QuantizationModifier}
    recipe: modifiers.Modifier = kinds[modifier](**arguments)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    calibration: dict[str, Any] = {}
    if tokens is not None:
        rows = load_file(tokens)["tokens"].tolist()
        dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
        calibration = {
            "dataset": dataset,
            "num_calibration_samples": len(rows),
            "max_seq_length": len(rows[0]),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe, **calibration)
    model.save_pretrained(output, save_compressed=True, max_shard_size=SHARD)
    return {}


def measure(folder: str, tokens: str, dtype: str, logits: str, checked: list[int]) -> dict[str, Any]:
    """Return the mean next-token cross-entropy of all tokens in nats, and write the first logits.

    Quantised activations are rounded as the scheme says, by compressed-tensors; weights are dequantised.

    Args:
        tokens: a file with the sequences, each of which predicts its tokens from the second to the last.
        logits: the file to write, of the first sequences and positions: `checked` says how many of each.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    device, rows = _device(), load_file(tokens)["tokens"].long()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()
    kept, nats = [], torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for number, row in enumerate(rows.to(device)):
            found = model(input_ids=row[None], use_cache=False).logits[0].float()
            nats += functional.cross_entropy(found[:-1], row[1:], reduction="sum").double().cpu()
            if number < checked[0]:
                kept.append(found[: checked[1]].cpu())
    save_file({"logits": torch.stack(kept)}, logits)
    predicted = rows.shape[0] * (rows.shape[1] - 1)
    return {"loss": float(nats) / predicted, "tokens": predicted}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"versions": versions, "quantize": quantize, "measure": measure}


def main() -> None:
    question, answer = map(Path, sys.argv[1:3])
    asked = json.loads(question.read_text(encoding="utf-8"))
    answer.write_text(json.dumps(ACTIONS[asked.pop("action")](**asked)), encoding="utf-8")


if __name__ == "__main__":
    main()
