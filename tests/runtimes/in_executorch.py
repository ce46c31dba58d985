"""Compute with the file that transact writes for ExecuTorch, of a folder or as it is, as worker.py says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from worker import Answer, greedy, serve

from transact.export.executorch import executorch_logits, write_executorch


def answer(model: str, prompt: list[int], new_tokens: int) -> Answer:
    with TemporaryDirectory() as work:
        file = Path(model)
        if file.is_dir():
            file = Path(work) / "model.pte"
            write_executorch(Path(model), file, "xnnpack", context=len(prompt) + new_tokens)

        def logits_after(tokens: list[int]) -> object:
            return executorch_logits(file, torch.tensor([tokens]), prompt=len(prompt))[0, -1].numpy()

        tokens, logprobs = greedy(logits_after, prompt, new_tokens)
    return {"tokens": tokens, "logprobs": logprobs, "by": "executorch"}


if __name__ == "__main__":
    serve(answer)
