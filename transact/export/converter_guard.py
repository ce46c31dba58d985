"""A tensor that stops converters which would leave out the frequencies of kept rotary pairs.

llama.cpp's converter reads a LLaMA with `longrope` factors without a complaint and writes a file without them. It
gives up on a tensor whose name it does not know, while transformers (4.57 and 5.23) skips every name with
"rotary_emb.inv_freq" in it without a word, and so does vLLM: old checkpoints are full of them. mlx-lm, which computes
the factors right, skips it inside a layer's attention only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from transact.models.rotary import inverse_frequencies, rope_settings
from transact.models.shards import DERIVED

# The converter skips names that *end* with DERIVED. It is no weight of layer 0, and our own readers leave it out.
GUARD_NAME = f"model.layers.0.self_attn.{DERIVED}_of_kept_pairs"


def guard_tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensor by its name where config.json states factors, else nothing: radians per position, float32."""
    if rope_settings(config)["rope_type"] != "longrope":
        return {}
    return {GUARD_NAME: inverse_frequencies(config).float()}
