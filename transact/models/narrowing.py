"""Let a decoder compute as if its layers were narrower, without changing a weight: other forwards for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from transact.models.hooks import decoder_layers
from transact.models.layer_by_layer import replaced_forward

# The inputs that an output projection still reads, (kept,) int64, and its weight for them, (hidden_size, kept).
Narrow = tuple[Tensor, Tensor]
Current = Mapping[tuple[int, str], Narrow]  # layer, dimension -> how narrow it is; what is whole is not in it


@contextmanager
def narrowing(model: nn.Module, current: Current) -> Iterator[None]:
    """Let forwards in the block compute what `current` says at that moment.

    The weights of a layer are whole while it computes, also where ranks share them (ZeRO-3 gathers layers as a whole).
    """
    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model)):
            mlp, output = layer.mlp, layer.self_attn.o_proj
            for module, dimension, forward in (
                (mlp, "intermediate_size", partial(_mlp, mlp)),
                (output, "num_key_value_heads", _projection),
            ):
                chosen = partial(_chosen, current, (number, dimension), forward, module.forward)
                stack.enter_context(replaced_forward(module, chosen))
        yield


def _chosen(
    current: Current, key: tuple[int, str], narrow: Callable[..., Tensor], whole: Callable[..., Tensor], hidden: Tensor
) -> Tensor:
    return narrow(hidden, *current[key]) if key in current else whole(hidden)


def _mlp(mlp: Any, hidden: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    gate, up = (functional.linear(hidden, each.weight[kept]) for each in (mlp.gate_proj, mlp.up_proj))
    return functional.linear(mlp.act_fn(gate) * up, weight)


def _projection(inputs: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(inputs[..., kept], weight)
