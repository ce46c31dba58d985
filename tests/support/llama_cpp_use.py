"""Compute with llama.cpp, whose build is on the path. Imports nothing of transact.

    python llama_cpp_use.py FILE.gguf QUESTION.json ANSWER.npz

QUESTION: {"sequences": [[token, ...], ...], "prompt": [token, ...], "new_tokens": n, "texts": [text, ...]}. ANSWER gets
the logits of every sequence, the greedy continuation of the prompt, and the tokens of the texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: Path, question: Path, answer: Path) -> None:
    import numpy
    from llama_cpp import Llama

    asked = json.loads(question.read_text())
    longest = max([len(each) for each in asked["sequences"]] + [len(asked["prompt"]) + asked["new_tokens"]])
    model = Llama(str(file), n_ctx=longest + 1, n_batch=longest + 1, logits_all=True, n_threads=2, verbose=False)
    found: dict[str, numpy.ndarray] = {}
    for number, sequence in enumerate(asked["sequences"]):
        model.reset()
        model.eval(sequence)
        found[f"logits_{number}"] = numpy.array(model.scores[: len(sequence)])
    tokens = list(asked["prompt"])
    model.reset()
    model.eval(tokens)
    for _ in range(asked["new_tokens"]):
        tokens.append(int(model.scores[len(tokens) - 1].argmax()))
        model.eval(tokens[-1:])
    found["greedy"] = numpy.array(tokens)
    for number, text in enumerate(asked["texts"]):
        found[f"text_{number}"] = numpy.array(model.tokenize(text.encode(), add_bos=False, special=False))
    numpy.savez(answer, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
