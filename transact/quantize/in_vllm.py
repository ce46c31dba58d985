"""Measure how fast vLLM decodes a model folder: runs in vLLM's environment.

    python in_vllm.py QUESTION.json ANSWER.json

QUESTION: {"folder", "prompt": tokens, "new_tokens", "turns"}, or {"folder": null} to be told the version. ANSWER:
{"version", "device", "seconds_per_token": of a decoding step, the median of the turns, batch size 1, bfloat16}. Imports
nothing of transact.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def version() -> str | None:
    """Return what is installed, with its name."""
    for name in DISTRIBUTIONS:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def seconds_per_token(folder: str, prompt: list[int], new_tokens: int, turns: int) -> float:
    """Return the time of a decoding step: what so many tokens take beyond the first one."""
    import torch
    from vllm import LLM, SamplingParams

    model: Any = LLM(
        folder,
        skip_tokenizer_init=True,
        max_model_len=len(prompt) + new_tokens + 1,
        dtype="bfloat16",  # which its kernels for 4 bits on CPUs want
        max_num_seqs=1,
        disable_log_stats=True,
        enable_prefix_caching=False,
        enforce_eager=not torch.cuda.is_available(),
    )

    def seconds(count: int) -> float:
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
        return time.perf_counter() - begin

    seconds(2)
    return statistics.median((seconds(new_tokens + 1) - seconds(1)) / new_tokens for _ in range(turns))


def main() -> None:
    question, answer = map(Path, sys.argv[1:3])
    asked = json.loads(question.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"version": version()}
    if asked["folder"] is not None:
        import torch

        found["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        found["seconds_per_token"] = seconds_per_token(**asked)
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
