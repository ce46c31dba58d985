"""Measure how fast vLLM decodes a model folder: runs in vLLM's environment.

    python in_vllm.py QUESTION.json ANSWER.json

QUESTION: {"folder", "prompt": tokens, "new_tokens", "turns"}, or {"folder": null} to be told the version. ANSWER:
{"version", "device", "seconds_per_token": of a decoding step, the median of the turns, batch size 1, bfloat16}. On a
CPU it is processor time of one thread, which other work on the machine does not change. Imports nothing of transact.
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
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def version() -> str | None:
    """Return what is installed, with its name."""
    for name in DISTRIBUTIONS:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def speed(folder: str, prompt: list[int], new_tokens: int, turns: int) -> dict[str, Any]:
    """Return the time of a decoding step, which is what so many tokens take beyond the first one, and on what."""
    os.environ |= ONE_THREAD  # before torch is imported; a GPU needs no more
    import torch

    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    from vllm import LLM, SamplingParams

    model: Any = LLM(
        folder,
        skip_tokenizer_init=True,
        max_model_len=len(prompt) + new_tokens + 1,
        dtype="bfloat16",  # which its kernels for 4 bits on CPUs want
        max_num_seqs=1,
        disable_log_stats=True,
        enable_prefix_caching=False,
        enforce_eager=not on_gpu,
    )

    def seconds(count: int) -> float:
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        begin = clock()
        model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
        return clock() - begin

    seconds(2)
    step = statistics.median((seconds(new_tokens + 1) - seconds(1)) / new_tokens for _ in range(turns))
    return {"device": "GPU" if on_gpu else "one thread of a CPU (processor time)", "seconds_per_token": step}


def main() -> None:
    question, answer = map(Path, sys.argv[1:3])
    asked = json.loads(question.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"version": version()}
    if asked["folder"] is not None:
        found |= speed(**asked)
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
