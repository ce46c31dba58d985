"""Compute with llama.cpp. Imports nothing of transact.

    python llama_cpp_use.py FILE.gguf QUESTION.json ANSWER.npz

QUESTION: {"sequences": [[token, ...], ...], "prompt": [token, ...], "new_tokens": n, "texts": [text, ...]}. ANSWER gets
the logits of every sequence, the greedy continuation of the prompt, and the tokens of the texts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transact.export.in_llama_cpp import Llama


def ask(
    file: Path,
    where: Path,
    *,
    sequences: Sequence[list[int]] = ((1, 2, 3),),
    prompt: Sequence[int] = (1, 2, 3),
    new_tokens: int = 1,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """A process of its own answers, its files in `where`: "logits" (sequences, length, vocabulary), "greedy", "texts".

    Raises:
        AssertionError: it fails; with what it says.
    """
    import numpy
    import torch

    from tests.support.optional import run_with

    asked, answered = where / "question.json", where / "answer.npz"
    question = {"sequences": sequences, "prompt": prompt, "new_tokens": new_tokens, "texts": texts}
    asked.write_text(json.dumps(question))
    run_with(None, Path(__file__), str(file), str(asked), str(answered))
    answer = numpy.load(answered)
    logits = numpy.stack([answer[f"logits_{number}"] for number in range(len(sequences))])
    found = [answer[f"text_{number}"].tolist() for number in range(len(texts))]
    return {"logits": torch.from_numpy(logits), "greedy": answer["greedy"].tolist(), "texts": found}


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
