"""LLaMA whose layers have widths of their own: transformers' classes, built layer by layer.

A model folder with such layers carries this file, and transformers runs it with `trust_remote_code=True`.
"""

from typing import Any

from torch import nn
from transformers.models.llama import modeling_llama as llama


class LayerwiseLlamaModel(llama.LlamaModel):
    def __init__(self, config: Any) -> None:
        llama.LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(self.decoder_layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = llama.LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def decoder_layer(self, config: Any, layer: int) -> nn.Module:
        return llama.LlamaDecoderLayer(config.per_layer_config[layer], layer)


class LayerwiseLlamaForCausalLM(llama.LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        llama.LlamaPreTrainedModel.__init__(self, config)
        self.model, self.vocab_size = self.model_of_layers(config), config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def model_of_layers(self, config: Any) -> nn.Module:
        return LayerwiseLlamaModel(config)
