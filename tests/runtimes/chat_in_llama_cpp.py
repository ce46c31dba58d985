"""Chat with the server of llama.cpp (xllamacpp), from GGUF files, as worker.py says."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from worker import Answer, serve


def answer(file: str, messages: list[dict[str, str]], new_tokens: int) -> Answer:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.use_jinja = True
    settings.n_ctx = 256
    server = xllamacpp.Server(settings)

    def post(path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    prompt = post("/apply-template", {"messages": messages})["prompt"]
    tokens = post("/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"]
    asked = {"messages": messages, "temperature": 0, "max_tokens": new_tokens}
    said = post("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
    return {"prompt": tokens, "answer": said}


if __name__ == "__main__":
    serve(answer)
