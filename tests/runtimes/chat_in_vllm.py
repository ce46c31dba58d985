"""Chat with vLLM, as worker.py says."""

from __future__ import annotations

from typing import Any

from in_vllm import SETTINGS
from worker import Answer, serve


def answer(folder: str, messages: list[dict[str, str]], new_tokens: int) -> Answer:
    from vllm import LLM, SamplingParams

    model: Any = LLM(folder, max_model_len=256, **SETTINGS)
    (request,) = model.chat(messages, SamplingParams(temperature=0, max_tokens=new_tokens), use_tqdm=False)
    return {"prompt": list(request.prompt_token_ids), "answer": request.outputs[0].text}


if __name__ == "__main__":
    serve(answer)
