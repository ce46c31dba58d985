"""Generate with vLLM, as worker.py says. A model is IMPLEMENTATION:FOLDER, with auto or transformers."""

from __future__ import annotations

import os
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
    model: Any = LLM(folder, skip_tokenizer_init=True, max_model_len=64, model_impl=implementation, **SETTINGS)
    settings = SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=0, ignore_eos=True, detokenize=False)
    (request,) = model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
    tokens = list(request.outputs[0].token_ids)
    told = request.outputs[0].logprobs
    logprobs = [each[token].logprob for each, token in zip(told, tokens, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs, "by": model.apply_model(lambda each: type(each).__name__)[0]}


if __name__ == "__main__":
    serve(answer)
