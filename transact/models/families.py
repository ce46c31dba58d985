"""The families that are supported, and where each differs from LLaMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
        is_layerwise_llama: whether `LAYERWISE_LLAMA` computes the same, layer by layer.
        required: fields of config.json that must be there because their defaults differ between families.
        window: how many positions attention looks back; None: all.
        check: raises ValueError for what the family has and slicing would damage.
        gguf_architecture: llama.cpp's name of a computation that is the same.
        modules: of transact/models, which a folder carries as code; the first has the class. Empty: it is stock.
    """

    model_type: str
    architecture: str
    configuration: str
    query_key_value_bias: bool = False
    query_key_norm: bool = False
    heads_divide_hidden_size: bool = False
    is_layerwise_llama: bool = False
    required: tuple[str, ...] = ("num_key_value_heads", "max_position_embeddings")
    window: Callable[[Config], int | None] = no_window
    check: Callable[[Config], None] = nothing_more
    gguf_architecture: str = "llama"
    modules: tuple[str, ...] = ()


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
    is_layerwise_llama=True,
    required=(),
    check=refuse_biases,
)
# A LLaMA whose layers have widths of their own, and one whose layers or heads rotate by frequencies of their own: no
# stock class builds them, so their folders carry the modules.
LAYERWISE_LLAMA = Family(
    model_type="llama",
    architecture="LayerwiseLlamaForCausalLM",
    configuration="LlamaConfig",
    is_layerwise_llama=True,
    required=(),
    gguf_architecture="deci",
    modules=("layerwise_llama",),
)
OWN_ROTATION_LLAMA = replace(
    LAYERWISE_LLAMA,
    model_type="own_rotation_llama",
    architecture="OwnRotationForCausalLM",
    modules=("own_rotation_llama", "layerwise_llama"),
)


STOCK_WINDOW = 4096  # default where config.json has no sliding_window; null there means no window


def mistral_window(config: Config) -> int | None:
    """Return the sliding window in positions; None where there is none."""
    return config.get("sliding_window", STOCK_WINDOW)


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    configuration="MistralConfig",
    is_layerwise_llama=True,
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
FAMILIES = {family.model_type: family for family in STOCK_FAMILIES}
STOCK_TYPES = tuple(FAMILIES)
VLLM_LAYERWISE = "DeciLMForCausalLM"
PER_LAYER = "per_layer_config"  # in config.json: number of a layer -> what it has of its own
# In config.json: (layers)(1 or key-value heads)(pairs) inverse frequencies, radians per position.
OWN_FREQUENCIES = "rotary_inverse_frequencies"


def family_of(config: Config) -> Family:
    """Return the family of a config.json that was checked before; LLaMA where it states no model_type."""
    if OWN_FREQUENCIES in config:
        return OWN_ROTATION_LLAMA
    return LAYERWISE_LLAMA if config.get(PER_LAYER) else FAMILIES[config.get("model_type", LLAMA.model_type)]


def architectures_of(config: Config) -> list[str]:
    """Return the classes that compute a config.json's model: transformers', and vLLM's own for layers that differ.

    The latter gives all layers the same query heads, so that it is named where none was cut.
    """
    family = family_of(config)
    heads = {layer["num_attention_heads"] for layer in config.get(PER_LAYER, {}).values()}
    takes_it = family is LAYERWISE_LLAMA and heads == {config["num_attention_heads"]}
    return [family.architecture, VLLM_LAYERWISE] if takes_it else [family.architecture]
