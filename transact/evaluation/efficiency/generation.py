"""Generate with a KV cache, and look at the clock: prefill and decode of one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transact.evaluation.efficiency.comparison import Seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Reads a device's time.

    On a CPU with one thread, processor time leaves out what other programs took. On a GPU only wall time means
    anything, and the device must be done before it is read.
    """

    device: torch.device
    threads: int

    @property
    def basis(self) -> str:
        """Which of the two times counts: "processor" or "wall"."""
        return "processor" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def read(self) -> tuple[float, float]:
        """Seconds of processor time (of this thread where it computes alone) and of wall time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        processor = time.thread_time() if self.basis == "processor" else time.process_time()
        return processor, time.perf_counter()


@torch.inference_mode()
def generate(
    model: Any, prompt: torch.Tensor, marks: Sequence[int], read: Callable[[], tuple[float, float]]
) -> dict[int, dict[str, Seconds]]:
    """Greedy generation after a prompt, as far as the last mark.

    Args:
        model: a causal language model of transformers.
        prompt: (sequences, prompt_tokens).
        marks: numbers of new tokens, ascending, each at least 2.
        read: the clock.

    Returns:
        For each mark the time of prefill, which makes the first new token, of one step of decode, and of the whole.
    """
    start = read()
    output = prefill(model, prompt)
    prefilled = read()
    found: dict[int, dict[str, Seconds]] = {}
    for new_tokens in range(2, marks[-1] + 1):
        output = decode(model, output)
        if new_tokens in marks:
            now = read()
            found[new_tokens] = {
                "prefill": Seconds.between(start, prefilled),
                "decode": Seconds.between(prefilled, now, pieces=new_tokens - 1),
                "whole": Seconds.between(start, now),
            }
    return found


@torch.inference_mode()
def prefill(model: Any, prompt: torch.Tensor) -> Any:
    return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def decode(model: Any, output: Any) -> Any:
    """One more token for every sequence, after what a forward has returned."""
    tokens = output.logits[:, -1:].argmax(dim=-1)
    return model(input_ids=tokens, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)


def random_prompt(vocab_size: int, sequences: int, length: int, device: torch.device) -> torch.Tensor:
    """The same tokens for every model: (sequences, length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (sequences, length), generator=generator).to(device)
