"""Compute with a GGUF file in llama.cpp, prebuilt in the package cyllama. Imports nothing of transact.

    python in_llama_cpp.py QUESTION.json ANSWER.json

QUESTION: {"file", "tokens": of one sequence, "threads"}. ANSWER: {"losses": of every token but the first, in nats}, or
{"unavailable": why the package cannot be imported}. Tests and benchmarks ask a `Llama` for more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray


class Llama:
    """A model with a context of one sequence."""

    def __init__(self, file: Path, longest: int, threads: int = 1) -> None:
        from cyllama.llama import llama_cpp as binding

        self._binding = binding
        settings = binding.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32: a cache that is as exact as the computation
        settings.flash_attn_type = 0  # off

        class Model(binding.LlamaModel):  # type: ignore[misc, name-defined]
            n_vocab = property(lambda self: self.get_vocab().n_vocab)  # which this release asks for and lacks

        self.model = Model(str(file), verbose=False)
        self.vocabulary = self.model.get_vocab()
        self._context = binding.LlamaContext(self.model, settings, verbose=False)
        self._position = 0

    def forget(self) -> None:
        """Begin a new sequence."""
        self._context.kv_cache_clear()
        self._position = 0

    def logits(self, tokens: list[int]) -> NDArray[numpy.float32]:
        """Return the logits after each of these tokens, which follow those before: (tokens, vocab_size)."""
        batch = self._binding.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for token in tokens:
            batch.add(token, self._position, [0], True)
            self._position += 1
        self._context.decode(batch)
        return numpy.array([self._context.get_logits_ith(number) for number in range(len(tokens))], dtype=numpy.float32)

    def tokens(self, text: str) -> list[int]:
        """Return a text's tokens without what texts begin with; special tokens in it are such, as in transformers."""
        return list(self.vocabulary.tokenize(text, False, True))

    def close(self) -> None:
        """Free the context before the model that it refers to: at the end of Python their order is left to chance."""
        del self._context, self.vocabulary, self.model


def next_token_losses(logits: NDArray[numpy.float32], tokens: list[int]) -> list[float]:
    """Return the losses of all tokens but the first, in nats. logits: after each token, (tokens, vocab_size)."""
    shifted = logits[:-1].astype(numpy.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    of_all = numpy.log(numpy.exp(shifted).sum(axis=1))
    return [float(each) for each in of_all - shifted[numpy.arange(len(tokens) - 1), tokens[1:]]]


def main(question: Path, answer: Path) -> None:
    asked = json.loads(question.read_text(encoding="utf-8"))
    found: dict[str, Any]
    try:
        model = Llama(Path(asked["file"]), len(asked["tokens"]), asked["threads"])
    except ImportError as error:
        found = {"unavailable": str(error)}
    else:
        found = {"losses": next_token_losses(model.logits(asked["tokens"]), asked["tokens"])}
        model.close()
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
