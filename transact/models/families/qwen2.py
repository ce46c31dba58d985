"""Qwen2 and Qwen2.5: biases on queries, keys and values, and often tied embeddings.

A bias is cut like one more column of its weight. llama.cpp's own `qwen2` insists on heads as wide as hidden_size;
its `llama` takes narrower ones, and biases too.
"""

from __future__ import annotations

from transact.models.family import Config, Family

STOCK_WINDOW = 4096  # where config.json is silent


def window(config: Config) -> int | None:
    """Of the layers that have one; off by default, whatever `sliding_window` says."""
    return config.get("sliding_window", STOCK_WINDOW) if config.get("use_sliding_window") else None


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    configuration="Qwen2Config",
    query_key_value_bias=True,
    window=window,
)
