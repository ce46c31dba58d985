"""Generate with vLLM, in its own environment. Imports nothing of transact.

    python vllm_use.py QUESTION.json ANSWER.json

QUESTION: {"prompt": [token, ...], "new_tokens": n, "models": {name: {"folder": path, "implementation": "vllm" or
"transformers" or "auto", "chat": messages, left out where there are none}}}. ANSWER gets for each name {"tokens",
"logprobs" of these tokens, "class" that computed, "chat" token ids of the messages} or {"error": what vLLM said}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}



def answer(prompt: list[int], new_tokens: int, folder: str, implementation: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    model = LLM(
        folder,
        skip_tokenizer_init=True,
        trust_remote_code=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=1,
        model_impl=implementation,
        disable_log_stats=True,
    )
    settings = SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=0, ignore_eos=True, detokenize=False)
    (request,) = model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
    tokens = list(request.outputs[0].token_ids)
    told = request.outputs[0].logprobs
    return {
        "tokens": tokens,
        "logprobs": [each[token].logprob for each, token in zip(told, tokens, strict=True)],
        "class": model.apply_model(lambda each: type(each).__name__)[0],
    }


def main(question: Path, file: Path) -> None:
    asked = json.loads(question.read_text())
    found = {}
    for name, model in asked["models"].items():
        try:
            found[name] = answer(asked["prompt"], asked["new_tokens"], model["folder"], model["implementation"])
        except Exception as error:  # noqa: BLE001 - a refusal is an answer
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
