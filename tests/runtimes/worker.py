"""What the scripts that generate in another environment share: a question in, an answer for each model out.

    python in_X.py QUESTION.json ANSWER.json

QUESTION: {"prompt": [token, ...], "new_tokens": n, "models": {name: folder}}; for chat_in_X.py {"messages": those of a
chat} instead of the prompt. ANSWER gets for each name {"tokens": the greedy continuation, "logprobs": of these tokens,
"by": what computed}, of transformers and vLLM also "prompt_logprobs": of the prompt's tokens but the first; of a chat
{"prompt": its tokens, "answer": text}; or {"error": what was said}. Imports nothing of transact; nor do the scripts,
but for those of ExecuTorch and llama.cpp, whose files transact writes or reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def serve(answer: Callable[[str, Any, int], Answer]) -> None:
    """Answer for every model with `answer(folder, prompt or messages, new_tokens)`."""
    question, file = map(Path, sys.argv[1:3])
    asked = json.loads(question.read_text())
    found = {}
    for name, folder in asked["models"].items():
        try:
            found[name] = answer(folder, asked.get("prompt") or asked["messages"], asked["new_tokens"])
        except Exception as error:  # noqa: BLE001 - a refusal is an answer
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    file.write_text(json.dumps(found))


def greedy(
    logits_after: Callable[[list[int]], Any], prompt: list[int], new_tokens: int
) -> tuple[list[int], list[float]]:
    """Take the likeliest token again and again, of the last position's logits after all tokens so far."""
    import numpy

    tokens = list(prompt)
    logprobs = []
    for _ in range(new_tokens):
        logits = numpy.asarray(logits_after(tokens), dtype=numpy.float64).reshape(-1)
        tokens.append(int(logits.argmax()))
        logprobs.append(float(-numpy.log(numpy.exp(logits - logits.max()).sum())))
    return tokens[len(prompt) :], logprobs
