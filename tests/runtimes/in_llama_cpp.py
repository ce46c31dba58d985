"""Compute with llama.cpp, from GGUF files, as worker.py says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker import Answer, greedy, serve

from transact.export.in_llama_cpp import Llama


def answer(file: str, prompt: list[int], new_tokens: int) -> Answer:
    model = Llama(Path(file), len(prompt) + new_tokens + 1)
    read = 0

    def logits_after(tokens: list[int]) -> object:
        nonlocal read
        start, read = read, len(tokens)
        return model.logits(tokens[start:])[-1]

    tokens, logprobs = greedy(logits_after, prompt, new_tokens)
    return {"tokens": tokens, "logprobs": logprobs, "by": "llama.cpp"}


if __name__ == "__main__":
    serve(answer)
    sys.stdout.flush()
    os._exit(0)  # the binding's objects may outlive what they refer to
