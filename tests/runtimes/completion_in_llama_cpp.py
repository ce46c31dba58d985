"""Complete a prompt with the server of llama.cpp (xllamacpp) and answer with all that it says, as worker.py says."""

from __future__ import annotations

from typing import Any

from worker import serve


def answer(file: str, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx = 256
    server = xllamacpp.Server(settings)
    said: dict[str, Any] = server.handle_completions({"prompt": prompt, "n_predict": new_tokens, "temperature": 0})
    return said


if __name__ == "__main__":
    serve(answer)
