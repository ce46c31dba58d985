"""Generate with ONNX Runtime GenAI, from the files that its builder makes of a folder, as worker.py says."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from worker import Answer, greedy, serve


def answer(folder: str, prompt: list[int], new_tokens: int) -> Answer:
    import numpy
    import onnxruntime_genai as genai

    with tempfile.TemporaryDirectory() as built:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
        made = subprocess.run([*builder, "-m", folder, "-o", built], capture_output=True, text=True, check=False)
        if made.returncode:
            raise RuntimeError(made.stderr.strip().splitlines()[-1])
        model = genai.Model(built)
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False)
    generator = genai.Generator(model, settings)
    read = 0

    def logits_after(tokens: list[int]) -> object:
        nonlocal read
        generator.append_tokens(numpy.array([tokens[read:]], dtype=numpy.int32))
        read = len(tokens)
        return generator.get_logits()

    tokens, logprobs = greedy(logits_after, prompt, new_tokens)
    return {"tokens": tokens, "logprobs": logprobs, "by": "onnxruntime_genai"}


if __name__ == "__main__":
    serve(answer)
