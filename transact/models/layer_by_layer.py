"""Run many micro-batches through a decoder a layer at a time, instead of one after the other through all layers.

With ZeRO-3 a layer's weights are then gathered once for all of them. Each micro-batch is computed by itself as ever:
its numbers are the same bit for bit, and only hidden states are kept of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from transact.models.hooks import decoder_layers
from transact.models.packing import ends_of_documents


@contextmanager
def layer_by_layer(model: nn.Module, micro_batch: int, done: Callable[[], object]) -> Iterator[None]:
    """Have forwards in the block, which must need no gradients, go through each layer in micro-batches.

    Args:
        micro_batch: sequences of each.
        done: called when a layer has computed one.
    """
    with ExitStack() as stack:
        for module in (*decoder_layers(model), model.get_submodule("model.norm")):
            stack.enter_context(replaced_forward(module, partial(_in_turn, module.forward, micro_batch, done)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Give a module another forward in the block; fused kernels may have given it one of its own before."""
    own = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _in_turn(
    inner: Callable[..., Tensor], micro_batch: int, done: Callable[[], object], hidden: Tensor, **given: Any
) -> Tensor:
    """Replace each micro-batch of hidden (sequences, length, hidden_size) by what the module makes of it."""
    assert given.get("past_key_values") is None  # one micro-batch would attend to those before it
    for first in range(0, len(hidden), micro_batch):
        own = slice(first, first + micro_batch)
        arguments = {name: _of_sequences(value, own, len(hidden)) for name, value in given.items()}
        if "cu_seq_lens_q" in given:
            arguments |= ends_of_documents(arguments["position_ids"])
        hidden[own] = inner(hidden[own], **arguments)
        done()
    return hidden


def _of_sequences(value: Any, own: slice, count: int) -> Any:
    """Return a part of an argument that has something for each of `count` sequences; others as they are."""
    if isinstance(value, tuple):  # cosines and sines
        return tuple(_of_sequences(each, own, count) for each in value)
    return value[own] if isinstance(value, Tensor) and value.dim() > 1 and len(value) == count else value
