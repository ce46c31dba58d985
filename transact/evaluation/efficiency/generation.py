"""Time and memory of a model's prefill and decode, and the speed-up over another model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Time of one piece of work. processor: of the thread that computes, or of the process if there are several."""

    processor: float
    wall: float

    @classmethod
    def between(cls, start: tuple[float, float], end: tuple[float, float], pieces: int = 1) -> Seconds:
        """Return the time for each of some pieces of work, from two readings of a clock."""
        return cls(processor=(end[0] - start[0]) / pieces, wall=(end[1] - start[1]) / pieces)


Turn = Mapping[str, Seconds]  # phase -> what it took
PHASES = ("prefill", "decode", "whole")  # decode: of one step; whole: the latency of prefill and all steps


def medians(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return the median seconds of each phase, in processor time and in wall time."""
    return {
        phase: {
            "processor_seconds": median(turn[phase].processor for turn in turns),
            "wall_seconds": median(turn[phase].wall for turn in turns),
        }
        for phase in PHASES
    }


def speed_ups(
    parent: Sequence[Turn], child: Sequence[Turn], allowed: Mapping[str, float], clock: str
) -> dict[str, dict[str, float]]:
    """Return per phase how many times as fast the child is: medians of the ratios within one turn.

    Args:
        allowed: phase -> ratio of the parent's FLOPs or bytes to the child's.
        clock: "processor" or "wall": the time that counts.

    Returns:
        phase -> speed_up and wall_speed_up; for a phase in `allowed` also that and `reached`, the share of it that the
        speed-up is.
    """
    result = {}
    for phase in PHASES:
        pairs = [(before[phase], after[phase]) for before, after in zip(parent, child, strict=True)]
        entry = {
            name: median(getattr(before, each) / getattr(after, each) for before, after in pairs)
            for name, each in (("speed_up", clock), ("wall_speed_up", "wall"))
        }
        if phase in allowed:
            entry |= {"allowed": allowed[phase], "reached": entry["speed_up"] / allowed[phase]}
        result[phase] = entry
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Clock for work on a device.

    On a CPU with one thread, processor time leaves out what other programs took. On a GPU only wall time means
    anything, and the device must be synchronised before it is read.
    """

    device: torch.device
    threads: int

    @property
    def basis(self) -> str:
        """Which of the two times counts: "processor" or "wall"."""
        return "processor" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def read(self) -> tuple[float, float]:
        """Return seconds of processor time (of this thread where it computes alone) and of wall time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        processor = time.thread_time() if self.basis == "processor" else time.process_time()
        return processor, time.perf_counter()


@torch.inference_mode()
def generate(
    model: Any, prompt: torch.Tensor, marks: Sequence[int], read: Callable[[], tuple[float, float]]
) -> dict[int, dict[str, Seconds]]:
    """Generate greedily after a prompt, as far as the last mark, and time it.

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
    """Run a forward over the prompt, for its KV cache and the logits of its last position."""
    return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def decode(model: Any, output: Any) -> Any:
    """Run one decoding step: one more token for every sequence, after what a forward has returned."""
    tokens = output.logits[:, -1:].argmax(dim=-1)
    return model(input_ids=tokens, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)


def random_prompt(vocab_size: int, sequences: int, length: int, device: torch.device) -> torch.Tensor:
    """Return random tokens (sequences, length), the same for every model."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (sequences, length), generator=generator).to(device)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of parameters and buffers, tied ones counted once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_bytes(model: Any, prompt: torch.Tensor, new_tokens: int) -> int:
    """Return the bytes of weights, KV cache and activations at the worst moment of generating after a prompt.

    Only tensors count: Python, the libraries and what kernels allocate inside come on top. The worst moment is in the
    prefill, or in the last step, when the KV cache is longest; one prefill of the whole length makes that cache here.
    """
    in_prefill = allocated_peak(lambda: prefill(model, prompt))
    length = prompt.shape[1] + new_tokens - 2
    output = prefill(model, prompt.repeat(1, -(-length // prompt.shape[1]))[:, :length])
    cache = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
    in_decode = sum(map(_storage_bytes, cache)) + allocated_peak(lambda: decode(model, output))
    return weight_bytes(model) + max(in_prefill, in_decode)


def allocated_peak(work: Callable[[], Any]) -> int:
    """Return the bytes of the tensors that `work` has made, at the worst moment, less those it has freed by then."""
    with _Allocations() as allocations:
        work()
    return allocations.peak


def _storage_bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracker of the life of every storage that an operator returns.

    A storage is alive as long as C++ holds it, a view or the graph of autograd for example: its Python object may be
    gone long before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._made: dict[StorageWeakRef, int] = {}
        self._met: dict[StorageWeakRef, int] = {}  # seen first as an argument: made before
        self._freed = 0  # bytes of those that are gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, made=True)
        return result

    def _see(self, values: Any, *, made: bool) -> None:
        is_new = False
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            if reference not in self._made and reference not in self._met:
                (self._made if made else self._met)[reference] = tensor.untyped_storage().nbytes()
                is_new = True
        if is_new:
            self._forget_dead()
            self.peak = max(self.peak, sum(self._made.values()) - self._freed)

    def _forget_dead(self) -> None:
        self._made = {reference: size for reference, size in self._made.items() if not _is_dead(reference)}
        for reference in [reference for reference in self._met if _is_dead(reference)]:
            self._freed += self._met.pop(reference)


def _is_dead(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]
