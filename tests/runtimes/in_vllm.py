"""Generate with vLLM, as worker.py says. A model is IMPLEMENTATION:FOLDER, with auto or transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from worker import Answer, serve

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
SETTINGS: dict[str, Any] = {
    "trust_remote_code": True,
    "enforce_eager": True,
    "dtype": "float32",
    "max_num_seqs": 1,
    "disable_log_stats": True,
}


def answer(folder: str, prompt: list[int], new_tokens: int) -> Answer:
    from vllm import LLM, SamplingParams

    implementation, _, folder = folder.partition(":")
    settings = SETTINGS | ({"dtype": "bfloat16"} if has_four_bits(folder) else {})
    model: Any = LLM(folder, skip_tokenizer_init=True, max_model_len=64, model_impl=implementation, **settings)
    sampling = SamplingParams(
        temperature=0, max_tokens=new_tokens, logprobs=0, prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    (request,) = model.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    tokens = list(request.outputs[0].token_ids)
    return {
        "tokens": tokens,
        "logprobs": logprobs_of(tokens, request.outputs[0].logprobs),
        "prompt_logprobs": logprobs_of(prompt[1:], request.prompt_logprobs[1:]),  # nothing predicts the first
        "by": model.apply_model(lambda each: type(each).__name__)[0],
    }


def logprobs_of(tokens: list[int], told: list[dict[int, Any]]) -> list[float]:
    return [each[token].logprob for each, token in zip(told, tokens, strict=True)]


def has_four_bits(folder: str) -> bool:
    """Whether weights are packed, for which vLLM's kernel on CPUs computes in 16 bits alone."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return bool(config.get("quantization_config", {}).get("format") == "pack-quantized")


if __name__ == "__main__":
    serve(answer)
