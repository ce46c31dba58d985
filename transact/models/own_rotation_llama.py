"""LLaMA whose layers, or heads, rotate by frequencies of their own, as where each kept rotary pairs of its own.

A model folder with such layers carries this file, and transformers runs it with `trust_remote_code=True`.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama as llama

from .layerwise_llama import LayerwiseLlamaForCausalLM, LayerwiseLlamaModel

ALL_ATTENTION_FUNCTIONS = llama.ALL_ATTENTION_FUNCTIONS  # by this name vLLM finds which forward attends


class OwnRotationConfig(llama.LlamaConfig):
    model_type = "own_rotation_llama"  # no LLaMA to stock code, which would rotate all layers alike


class OwnRotationAttention(llama.LlamaAttention):
    def forward(self, hidden_states: Tensor, position_embeddings: Any, **given: Any) -> Any:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.rotated(self.q_proj(hidden_states), *position_embeddings).view(heads).transpose(1, 2)
        key = self.rotated(self.k_proj(hidden_states), *position_embeddings).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if (cache := given.pop("past_key_values", None)) is not None:
            key, value = cache.update(key, value, self.layer_idx)
        given |= {"attention_mask": given.get("attention_mask"), "dropout": self.attention_dropout * self.training}
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, llama.eager_attention_forward)
        mixed, weights = attend(self, query, key, value, scaling=self.scaling, **given)
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights

    def rotated(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        grouped = states.view(*states.shape[:2], cosine.shape[2], -1, self.head_dim)  # third: 1 or key-value heads
        return grouped * cosine[:, :, :, None] + llama.rotate_half(grouped) * sine[:, :, :, None]


class OwnRotationDecoderLayer(llama.LlamaDecoderLayer):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.self_attn = OwnRotationAttention(config, layer)
        self.frequencies = config.rotary_inverse_frequencies[layer]  # (1 or key-value heads)(pairs)

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Any:
        given["position_embeddings"] = self.rotation(given["position_ids"], given["position_embeddings"])
        return super().forward(hidden_states, *args, **given)

    def rotation(self, positions: Tensor, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inverse = torch.tensor(self.frequencies, dtype=torch.float32, device=positions.device)
        angles = positions[:, :, None, None].float() * torch.cat([inverse, inverse], dim=-1)
        return angles.cos().to(shared[0].dtype), angles.sin().to(shared[1].dtype)


class OwnRotationModel(LayerwiseLlamaModel):
    config_class, layer_class = OwnRotationConfig, OwnRotationDecoderLayer


class OwnRotationForCausalLM(LayerwiseLlamaForCausalLM):
    config_class, model_class = OwnRotationConfig, OwnRotationModel
