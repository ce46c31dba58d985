"""The families that are supported, and where each differs from LLaMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]  # a parsed config.json


def no_window(_config: Config) -> None:
    """Return None: every position sees all before it."""


def nothing_more(_config: Config) -> None:
    """Check nothing: the checks that all families share are enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model family, and where it differs from LLaMA.

    Attributes:
        model_type: of config.json.
        architecture: transformers' class of the model.
        configuration: transformers' class of its configuration.
        query_key_value_bias: whether q_proj, k_proj and v_proj have a bias.
        query_key_norm: whether queries and keys pass a norm over each head's dims, after the projection and before
            the rotation, whose weight the heads share.
        heads_divide_hidden_size: whether the configuration insists on it.
        has_own_frequencies: whether `transact_llama` computes the same, with frequencies that no stock class takes.
        required: fields of config.json that must be there because their defaults differ between families.
        window: how many positions attention looks back; None: all.
        check: raises ValueError for what the family has and slicing would damage.
        gguf_architecture: llama.cpp's name of a computation that is the same.
    """

    model_type: str
    architecture: str
    configuration: str
    query_key_value_bias: bool = False
    query_key_norm: bool = False
    heads_divide_hidden_size: bool = False
    has_own_frequencies: bool = False
    required: tuple[str, ...] = ("num_key_value_heads", "max_position_embeddings")
    window: Callable[[Config], int | None] = no_window
    check: Callable[[Config], None] = nothing_more
    gguf_architecture: str = "llama"


def refuse_biases(config: Config) -> None:
    """Raise ValueError if projections have biases, in a family whose biases are not supported."""
    refuse_if_true(config, "attention_bias", "mlp_bias")


def refuse_if_true(config: Config, *names: str) -> None:
    """Raise ValueError if one of these switches is on."""
    for name in names:
        if config.get(name):
            raise ValueError(f"{name} is {config[name]}; supported: False")


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    configuration="LlamaConfig",
    heads_divide_hidden_size=True,
    has_own_frequencies=True,
    required=(),
    check=refuse_biases,
)
# A LLaMA whose layers or heads kept different rotary pairs: no stock class, so no stock name.
TRANSACT_LLAMA = Family(
    model_type="transact_llama",
    architecture="TransactLlamaForCausalLM",
    configuration="LlamaConfig",
    has_own_frequencies=True,
    required=(),
)


STOCK_WINDOW = 4096  # default where config.json has no sliding_window; null there means no window


def mistral_window(config: Config) -> int | None:
    """Return the sliding window in positions; None where there is none."""
    return config.get("sliding_window", STOCK_WINDOW)


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    configuration="MistralConfig",
    has_own_frequencies=True,
    window=mistral_window,
    check=refuse_biases,
)


def qwen_window(config: Config) -> int | None:
    """Return the window of the layers that have one; None by default, whatever `sliding_window` says."""
    return config.get("sliding_window", STOCK_WINDOW) if config.get("use_sliding_window") else None


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    configuration="Qwen2Config",
    query_key_value_bias=True,
    window=qwen_window,
)


def refuse_attention_bias(config: Config) -> None:
    refuse_if_true(config, "attention_bias")


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    configuration="Qwen3Config",
    query_key_norm=True,
    required=("head_dim", "num_key_value_heads", "max_position_embeddings"),
    window=qwen_window,
    check=refuse_attention_bias,
    gguf_architecture="qwen3",
)


STOCK_FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)
FAMILIES = {family.model_type: family for family in (*STOCK_FAMILIES, TRANSACT_LLAMA)}
STOCK_TYPES = tuple(family.model_type for family in STOCK_FAMILIES)


def family_of(config: Config) -> Family:
    """Return the family of a config.json that was checked before; LLaMA where it states no model_type."""
    return FAMILIES[config.get("model_type", LLAMA.model_type)]
