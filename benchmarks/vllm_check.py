"""Compare an exported folder in vLLM and transformers: log-probabilities of the same tokens, in bfloat16, on a GPU.

    python -m benchmarks.vllm_check FOLDER

A process of its own, because vLLM keeps the GPU until its process ends. Written against vLLM 0.33.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from transact.errors import DONE, leave
from transact.files import read_json
from transact.models.rotary import context_limit

LENGTH = 512  # tokens
# Kernels round differently in bfloat16: single tokens may be off by more, their mean may not.
TOLERANCE = 0.02  # nats
MEMORY_SHARE = 0.3  # of the GPU, beside whoever else is on it


def vllm_difference(folder: Path) -> float | None:
    """Return the mean absolute difference in nats, from a process of its own; None where vLLM is not installed.

    Raises:
        RuntimeError: vLLM does not load the folder; with what it says.
    """
    if importlib.util.find_spec("vllm") is None:
        return None
    command = [sys.executable, "-m", "benchmarks.vllm_check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"vLLM does not load {folder}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["difference"])


def transformers_log_probabilities(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return the log-probability of each token but the first, from transformers: (length - 1,)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().cuda()
    row = torch.tensor([tokens], device="cuda")
    with torch.no_grad():
        scores = model(row).logits[0, :-1].float().log_softmax(dim=-1)
    return scores.gather(1, row[0, 1:, None]).squeeze(1).cpu()


def vllm_log_probabilities(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return the log-probability of each token but the first, from vLLM: (length - 1,)."""
    import vllm

    model: Any = vllm.LLM(
        model=str(folder),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=len(tokens) + 1,
        gpu_memory_utilization=MEMORY_SHARE,
    )
    settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    (answer,) = model.generate([{"prompt_token_ids": tokens}], settings)
    pairs = zip(tokens[1:], answer.prompt_logprobs[1:], strict=True)
    return torch.tensor([found[token].logprob for token, found in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    config = read_json(folder / "config.json")
    length = min(LENGTH, context_limit(config) - 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config["vocab_size"], (length,), generator=generator).tolist()
    ours = transformers_log_probabilities(folder, tokens)
    theirs = vllm_log_probabilities(folder, tokens)
    print(json.dumps({"difference": float((ours - theirs).abs().mean())}), flush=True)


if __name__ == "__main__":
    main()
    leave(DONE)
