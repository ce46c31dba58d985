"""A GGUF file in llama.cpp, prebuilt in the package cyllama."""

from __future__ import annotations

from pathlib import Path

from numpy import array, float32
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

    def logits(self, tokens: list[int]) -> NDArray[float32]:
        """Return the logits after each of these tokens, which follow those before: (tokens, vocab_size)."""
        batch = self._binding.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for token in tokens:
            batch.add(token, self._position, [0], True)
            self._position += 1
        self._context.decode(batch)
        return array([self._context.get_logits_ith(number) for number in range(len(tokens))], dtype=float32)

    def tokens(self, text: str) -> list[int]:
        """Return a text's tokens without what texts begin with; special tokens in it are such, as in transformers."""
        return list(self.vocabulary.tokenize(text, False, True))
