"""The only import of Liger: fused Triton kernels in place of operations of a stock model, of this one model alone.

Liger's own `apply_liger_kernel_to_llama` replaces classes and functions of transformers for the whole process, and so
in the model that an export is compared with. Here its functions are bound to the modules of one model.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from transact.models.hooks import decoder_layers
from transact.models.loss_head import IGNORED, LossHead

ROTATION = "apply_rotary_pos_emb"  # of every family's module in transformers


def fuse(model: nn.Module) -> None:
    """Let a LLaMA-like model compute its norms, rotations, SwiGLU and cross-entropy with Liger's kernels.

    The weights stay where they are: gathered parts of ZeRO are read as they come.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy, liger_rms_norm, liger_swiglu
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    from transact.models.own_rotation_llama import OwnRotationAttention

    def normalise(module: Any, hidden: Tensor) -> Tensor:
        # Not in place: the gradient of a norm's output may be somebody else's too.
        return liger_rms_norm(hidden, module.weight, module.variance_epsilon, in_place=False)

    def gated(module: Any, hidden: Tensor) -> Tensor:
        return module.down_proj(liger_swiglu(module.gate_proj(hidden), module.up_proj(hidden)))

    def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        options = {"ignore_index": IGNORED, "reduction": "mean", "accum_dtype": torch.float32}
        return liger_fused_linear_cross_entropy(hidden, weight, targets, **options)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(normalise, module)
    for layer in decoder_layers(model):
        layer.mlp.forward = MethodType(gated, layer.mlp)
        attention = layer.self_attn
        if not isinstance(attention, OwnRotationAttention):  # whose heads Liger's kernel cannot rotate apart
            attention.forward = MethodType(_rotating(type(attention), liger_rotary_pos_emb), attention)
    head: Any = model.get_submodule("lm_head")
    assert isinstance(head, LossHead)
    head.fused_cross_entropy = cross_entropy


def _rotating(attention: type, rotation: Any) -> FunctionType:
    """Return the class's forward with another function for the rotation, which it looks up in its module."""
    forward: Any = attention.forward  # type: ignore[attr-defined]
    assert inspect.isfunction(forward) and ROTATION in forward.__code__.co_names, attention
    copied = FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTATION: rotation},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied
