"""Run a LLaMA whose layers, or heads, kept different rotary pairs: no stock class expresses that.

Hooks rotate the outputs of q_proj and k_proj themselves, each head by its own frequencies, and hand the
attention module the identity as its rotary embedding. Hooks see activations only, so this works under ZeRO.
Positions are 0, 1, 2, ...: for training and evaluation on packed sequences, not for cached generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def attach_own_frequencies(model: nn.Module, frequencies: Tensor) -> None:
    """Make a ``LlamaForCausalLM`` rotate by frequencies of its own; the hooks are never removed.

    Args:
        model: with ``head_dim`` = 2 * pairs.
        frequencies: (layers, num_key_value_heads, pairs), radians per position, float64.
    """
    layers: Any = model.get_submodule("model.layers")
    assert len(layers) == len(frequencies), (len(layers), len(frequencies))
    table = Table(frequencies)
    for number, block in enumerate(layers):
        attention = block.self_attn
        attention.q_proj.register_forward_hook(_rotation(table, number))
        attention.k_proj.register_forward_hook(_rotation(table, number))
        attention.register_forward_pre_hook(_identity_embedding, with_kwargs=True)


class Table:
    """Cosines and sines of a model's frequencies, computed once for each device and the longest text seen on it.

    Layers and heads keep different pairs of the same few frequencies, so there is a column for each of these alone.
    """

    def __init__(self, frequencies: Tensor) -> None:
        """Find the distinct ones among frequencies (layers, groups, pairs), float64."""
        self._distinct, self._columns = frequencies.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        self._kept: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def of(self, layer: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the layer's cosines and sines: (length, groups, pairs) each, float32, on the device."""
        if device not in self._kept or len(self._kept[device][0]) < length:
            self._kept[device] = self._computed(length, device)
        cosine, sine, columns = self._kept[device]
        return cosine[:length, columns[layer]], sine[:length, columns[layer]]

    def _computed(self, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode(False):  # a training step may use what an evaluation has computed
            angles = torch.arange(length, dtype=torch.float64)[:, None] * self._distinct  # (length, distinct)
            cosine, sine = (part.to(device, torch.float32) for part in (angles.cos(), angles.sin()))
            return cosine, sine, self._columns.to(device)


def _rotation(table: Table, layer: int) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        batch, length, width = output.shape
        cosine, sine = (part[None, :, :, None] for part in table.of(layer, length, output.device))
        groups, pairs = cosine.shape[2], cosine.shape[4]
        # (batch, length, groups, heads of a group, 2, pairs)
        x, y = output.float().view(batch, length, groups, width // (groups * 2 * pairs), 2, pairs).unbind(dim=4)
        rotated = torch.stack([x * cosine - y * sine, y * cosine + x * sine], dim=4)
        return rotated.reshape(output.shape).to(output.dtype)

    return hook


def _identity_embedding(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    cosine, sine = keywords["position_embeddings"]
    return arguments, keywords | {"position_embeddings": (torch.ones_like(cosine), torch.zeros_like(sine))}
