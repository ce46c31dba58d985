"""Compute with llama.cpp, prebuilt in the package cyllama. Imports nothing of transact.

    python llama_cpp_use.py FILE.gguf QUESTION.json ANSWER.npz

QUESTION: {"sequences": [[token, ...], ...], "prompt": [token, ...], "new_tokens": n, "texts": [text, ...]}. ANSWER gets
the logits of every sequence, the greedy continuation of the prompt, and the tokens of the texts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


class Llama:
    """A model with a context of one sequence."""

    def __init__(self, file: Path, longest: int) -> None:
        from cyllama.llama import llama_cpp as binding

        self._binding = binding
        settings = binding.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = 2

        class Model(binding.LlamaModel):  # type: ignore[misc, name-defined]
            n_vocab = property(lambda self: self.get_vocab().n_vocab)  # which this release asks for and lacks

        self.model = Model(str(file), verbose=False)
        self.vocabulary = self.model.get_vocab()
        self._context = binding.LlamaContext(self.model, settings, verbose=False)
        self._position = 0

    def forget(self) -> None:
        self._context.kv_cache_clear()
        self._position = 0

    def logits(self, tokens: list[int]) -> list[list[float]]:
        """Logits after each of these tokens, which follow those before."""
        batch = self._binding.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for token in tokens:
            batch.add(token, self._position, [0], True)
            self._position += 1
        self._context.decode(batch)
        return [list(self._context.get_logits_ith(number)) for number in range(len(tokens))]

    def tokens(self, text: str) -> list[int]:
        """Without what a text begins with; special tokens that stand in it are such, as in transformers."""
        return list(self.vocabulary.tokenize(text, False, True))


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
