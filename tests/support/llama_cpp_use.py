"""Compute with llama.cpp. Imports nothing of transact.

    python llama_cpp_use.py FILE.gguf QUESTION.json ANSWER.npz

QUESTION: {"sequences": [[token, ...], ...], "prompt": [token, ...], "new_tokens": n, "texts": [text, ...]}. ANSWER gets
the logits of every sequence, the greedy continuation of the prompt, and the tokens of the texts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.llama_cpp import Llama


def main(file: Path, question: Path, answer: Path) -> None:
    import numpy

    asked = json.loads(question.read_text())
    longest = max([len(each) for each in asked["sequences"]] + [len(asked["prompt"]) + asked["new_tokens"]])
    model = Llama(file, longest + 1)
    found: dict[str, numpy.ndarray] = {}
    for number, sequence in enumerate(asked["sequences"]):
        model.forget()
        found[f"logits_{number}"] = numpy.array(model.logits(sequence), dtype=numpy.float32)
    model.forget()
    tokens = list(asked["prompt"])
    read = tokens
    for _ in range(asked["new_tokens"]):
        tokens = [*tokens, int(numpy.argmax(model.logits(read)[-1]))]
        read = tokens[-1:]
    found["greedy"] = numpy.array(tokens)
    for number, text in enumerate(asked["texts"]):
        found[f"text_{number}"] = numpy.array(model.tokens(text))
    numpy.savez(answer, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
    sys.stdout.flush()
    os._exit(0)  # the binding's objects may outlive what they refer to
