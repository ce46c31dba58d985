"""One decoder layer of a checkpoint as a module of its own, fed with hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from transact.models.own_frequencies import attach_own_frequencies
from transact.models.rotary import OWN_FREQUENCIES, head_frequencies
from transact.models.stock import stock_class


class SingleLayer(nn.Module):
    """A stock decoder layer with its rotary embedding: (batch, length, hidden_size) -> the same, causal."""

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        """Random weights; load them with `load_layer`."""
        super().__init__()
        # The embedding is of no use here, so it is made as small as it can be.
        small = dict(config) | {"num_hidden_layers": 1, "vocab_size": 1, "pad_token_id": None}
        if config.get("layer_types"):
            small["layer_types"] = [config["layer_types"][layer]]
        frequencies = head_frequencies(config)[layer : layer + 1] if OWN_FREQUENCIES in config else None
        # sdpa is causal without a mask; eager attention would look ahead.
        model_class, model_config = stock_class(small, "sdpa")
        model = model_class(model_config)
        if frequencies is not None:
            attach_own_frequencies(model, frequencies)
        self.block: Any = model.model.layers[0]
        self.rotary: Any = model.model.rotary_emb
        self.eval().requires_grad_(False)

    def load_layer(self, tensors: Mapping[str, Tensor], layer: int) -> None:
        """Take the weights of one layer, by their names in the whole model."""
        prefix = f"model.layers.{layer}."
        self.block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})

    def forward(self, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        output = self.block(
            hidden,
            attention_mask=None,
            position_ids=positions,
            position_embeddings=self.rotary(hidden, positions),
            use_cache=False,
        )
        return output[0] if isinstance(output, tuple) else output
