"""LLaMA whose layers, or heads, rotate by frequencies of their own, as where each kept rotary pairs of its own.

A model folder with such layers carries this file, and transformers runs it with `trust_remote_code=True`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama

from .layerwise_llama import LayerwiseLlamaForCausalLM, LayerwiseLlamaModel


class OwnRotationConfig(llama.LlamaConfig):
    model_type = "own_rotation_llama"  # no LLaMA to stock code, which would rotate all layers alike


class OwnRotationDecoderLayer(llama.LlamaDecoderLayer):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config.per_layer_config[layer], layer)
        self.frequencies = config.rotary_inverse_frequencies[layer]  # (1 or key-value heads)(pairs)
        if len(self.frequencies) > 1:
            self.self_attn.q_proj.register_forward_hook(self.rotate_heads)
            self.self_attn.k_proj.register_forward_hook(self.rotate_heads)

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Any:
        given["position_embeddings"] = self.rotation(given["position_ids"], given["position_embeddings"])
        return super().forward(hidden_states, *args, **given)

    def rotation(self, position_ids: Tensor, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inverse = torch.tensor(self.frequencies, dtype=torch.float32, device=position_ids.device)
        self.angles = position_ids[:, :, None, None].float() * inverse  # (batch, length, 1 or heads, pairs)
        if len(self.frequencies) == 1:
            angles = torch.cat([self.angles[:, :, 0]] * 2, dim=-1)
            return angles.cos().to(shared[0].dtype), angles.sin().to(shared[0].dtype)
        if not self.self_attn.q_proj._forward_hooks:
            raise RuntimeError("heads have rotary frequencies of their own, and this software drops the hooks for them")
        return torch.ones_like(shared[0]), torch.zeros_like(shared[1])  # the hooks rotate

    def rotate_heads(self, _projection: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        cosine, sine = self.angles.cos()[:, :, :, None], self.angles.sin()[:, :, :, None]
        x, y = output.float().view(*output.shape[:2], cosine.shape[2], -1, 2, cosine.shape[4]).unbind(dim=4)
        return torch.stack([x * cosine - y * sine, y * cosine + x * sine], dim=4).view(output.shape).to(output.dtype)


class OwnRotationModel(LayerwiseLlamaModel):
    config_class = OwnRotationConfig

    def decoder_layer(self, config: Any, layer: int) -> nn.Module:
        return OwnRotationDecoderLayer(config, layer)


class OwnRotationForCausalLM(LayerwiseLlamaForCausalLM):
    config_class = OwnRotationConfig

    def model_of_layers(self, config: Any) -> nn.Module:
        return OwnRotationModel(config)
