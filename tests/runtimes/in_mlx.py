"""Generate with mlx-lm on a CPU, as worker.py says."""

from __future__ import annotations

from worker import Answer, serve


def answer(folder: str, prompt: list[int], new_tokens: int) -> Answer:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(folder)
    steps = list(generate_step(mx.array(prompt), model, max_tokens=new_tokens))
    tokens = [int(token) for token, _ in steps]
    logprobs = [float(told[token]) for token, (_, told) in zip(tokens, steps, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs, "by": type(model).__module__}


if __name__ == "__main__":
    serve(answer)
