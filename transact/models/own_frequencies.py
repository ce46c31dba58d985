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
    for block, per_head in zip(layers, frequencies, strict=True):
        attention = block.self_attn
        attention.q_proj.register_forward_hook(_rotation(per_head))
        attention.k_proj.register_forward_hook(_rotation(per_head))
        attention.register_forward_pre_hook(_identity_embedding, with_kwargs=True)


def _rotation(frequencies: Tensor) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        groups, pairs = frequencies.shape
        batch, length, width = output.shape
        angles = torch.arange(length, dtype=torch.float64)[:, None, None] * frequencies  # (length, groups, pairs)
        cosine, sine = (
            part.to(output.device, torch.float32)[None, :, :, None] for part in (angles.cos(), angles.sin())
        )
        # (batch, length, groups, heads of a group, 2, pairs)
        x, y = output.float().view(batch, length, groups, width // (groups * 2 * pairs), 2, pairs).unbind(dim=4)
        rotated = torch.stack([x * cosine - y * sine, y * cosine + x * sine], dim=4)
        return rotated.reshape(output.shape).to(output.dtype)

    return hook


def _identity_embedding(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    cosine, sine = keywords["position_embeddings"]
    return arguments, keywords | {"position_embeddings": (torch.ones_like(cosine), torch.zeros_like(sine))}
