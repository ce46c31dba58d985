"""How much memory of tensors a model needs at its peak. Counted, not sampled: the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transact.evaluation.efficiency.generation import decode, prefill


def weight_bytes(model: torch.nn.Module) -> int:
    """Parameters and buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_bytes(model: Any, prompt: torch.Tensor, new_tokens: int) -> int:
    """Weights, KV cache and activations at the worst moment of generating `new_tokens` after a prompt.

    Of tensors alone: Python, the libraries and what kernels allocate inside come on top. The worst moment is in the
    prefill, or in the last step, when the KV cache is longest; one prefill of the whole length makes that cache here.
    """
    in_prefill = allocated_peak(lambda: prefill(model, prompt))
    length = prompt.shape[1] + new_tokens - 2
    output = prefill(model, prompt.repeat(1, -(-length // prompt.shape[1]))[:, :length])
    cache = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
    in_decode = sum(map(_storage_bytes, cache)) + allocated_peak(lambda: decode(model, output))
    return weight_bytes(model) + max(in_prefill, in_decode)


def allocated_peak(work: Callable[[], Any]) -> int:
    """Bytes of tensors that `work` has made, at the worst moment, less those it has freed by then."""
    with _Allocations() as allocations:
        work()
    return allocations.peak


def _storage_bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the life of every storage that an operator returns.

    A storage is alive as long as C++ holds it, a view or the graph of autograd for example: its Python object may be
    gone long before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._made: dict[StorageWeakRef, int] = {}
        self._met: dict[StorageWeakRef, int] = {}  # as an argument: they were there before
        self._freed = 0  # of those

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
