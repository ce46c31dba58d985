"""Qwen3 (dense): queries and keys are normalised over each head's dims before they rotate.

With fewer dims the norm divides by the size of the kept part alone. What that changes, and what makes up for it, is
in `transact.prune.slicing.cut_attention`.
"""

from __future__ import annotations

from transact.models.families.qwen2 import window
from transact.models.family import Config, Family, refuse_if_true


def _check(config: Config) -> None:
    refuse_if_true(config, "attention_bias")


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    configuration="Qwen3Config",
    query_key_norm=True,
    required=("head_dim", "num_key_value_heads", "max_position_embeddings"),
    window=window,
    check=_check,
    gguf_architecture="qwen3",
)
