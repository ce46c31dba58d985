"""LLaMA whose layers have widths of their own: transformers' classes, built layer by layer.

A model folder with such layers carries this file, and transformers runs it with `trust_remote_code=True`.
"""

from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers.models.llama import modeling_llama as llama


class LayerwiseLlamaConfig(llama.LlamaConfig):
    @property
    def block_configs(self) -> list[SimpleNamespace]:
        """The layers in the words of vLLM's DeciLMForCausalLM, which gives all of them the same query heads."""
        blocks = []
        for layer in range(self.num_hidden_layers):
            own = self.per_layer_config[layer]
            group = own.num_attention_heads // own.num_key_value_heads
            ffn = SimpleNamespace(no_op=False, intermediate_size=own.intermediate_size)
            blocks.append(SimpleNamespace(attention=SimpleNamespace(no_op=False, n_heads_in_group=group), ffn=ffn))
        return blocks


class LayerwiseLlamaModel(llama.LlamaModel):
    config_class, layer_class = LayerwiseLlamaConfig, llama.LlamaDecoderLayer

    def __init__(self, config: Any) -> None:
        llama.LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(self.layer_class(config.per_layer_config[layer], layer) for layer in layers)
        self.norm = llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = llama.LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class LayerwiseLlamaForCausalLM(llama.LlamaForCausalLM):
    config_class, model_class = LayerwiseLlamaConfig, LayerwiseLlamaModel

    def __init__(self, config: Any) -> None:
        llama.LlamaPreTrainedModel.__init__(self, config)
        self.model, self.vocab_size = self.model_class(config), config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
