"""Compute in ExecuTorch what transformers' own exporter makes of a folder for XNNPACK, as worker.py says."""

from __future__ import annotations

from worker import Answer, greedy, serve


def answer(folder: str, prompt: list[int], new_tokens: int) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.exporters.exporter_executorch import ExecutorchConfig, ExecutorchExporter

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    whole = len(prompt) + new_tokens
    inputs = {"input_ids": torch.zeros(1, whole, dtype=torch.long), "use_cache": False}
    program = ExecutorchExporter().export(model, dict(inputs), config=ExecutorchConfig(backend="xnnpack"))

    def logits_after(tokens: list[int]) -> object:
        filled = torch.tensor([tokens + [0] * (whole - len(tokens))])
        return program(input_ids=filled).logits[0, len(tokens) - 1].numpy()

    tokens, logprobs = greedy(logits_after, prompt, new_tokens)
    return {"tokens": tokens, "logprobs": logprobs, "by": "executorch"}


if __name__ == "__main__":
    serve(answer)
