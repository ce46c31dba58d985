"""The LLaMA family: its configuration, what is cut in which tensor, and the cut config.json.

The family is LLaMA, and Mistral without a sliding window, which is the same computation.

Works on the parsed config.json and on single tensors by name, so a checkpoint can be streamed
through layer by layer. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry
from transact.models.rotary import OWN_FREQUENCIES, head_frequencies, kept_pairs_settings, rope_settings

if TYPE_CHECKING:
    from torch import Tensor

    from transact.prune.gram import LayerGram
    from transact.prune.planning import PrunePlan
    from transact.prune.weights import LayerWeights

STOCK_TYPES = ("llama", "mistral")
# A LLaMA whose layers or heads kept different rotary pairs: no stock class, so no stock name.
OWN_TYPE = "transact_llama"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", OWN_TYPE: "TransactLlamaForCausalLM"}
PROJECTIONS = {  # name in the state dict -> field of LayerWeights
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "output",
    "gate": "gate",
    "up": "up",
    "down": "down",
}

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_PROJECTION = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)_proj\.weight")


def read_geometry(config: Mapping[str, Any]) -> Geometry:
    """Dimensions from a config.json.

    Raises:
        ValueError: a field is missing or not a whole number, or dimensions do not fit together.
    """
    hidden_size = _dimension(config, "hidden_size")
    num_attention_heads = _dimension(config, "num_attention_heads")
    return Geometry(
        hidden_size=hidden_size,
        num_layers=_dimension(config, "num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=_dimension(config, "num_key_value_heads", num_attention_heads),
        head_dim=_dimension(config, "head_dim", hidden_size // num_attention_heads),
        intermediate_size=_dimension(config, "intermediate_size"),
        vocab_size=_dimension(config, "vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse a model that slicing would silently damage, or whose result no stock class loads.

    Raises:
        ValueError: one line with the field, its value and what is supported.
    """
    if config.get("model_type") not in STOCK_TYPES:
        raise ValueError(f"model_type is {config.get('model_type')!r}; supported: {', '.join(STOCK_TYPES)}")
    if config.get("model_type") == "mistral" and config.get("sliding_window") is not None:
        raise ValueError(f"sliding_window is {config['sliding_window']}; supported: null")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise ValueError(f"{name} is {config[name]}; supported: False")
    if config.get("max_position_embeddings") is not None:
        _dimension(config, "max_position_embeddings")
    for name in ("rms_norm_eps", "rope_theta"):
        value = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        if value is not None and not is_number:
            raise ValueError(f"config.json: {name} must be a number above 0, got {value!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}; supported: 'silu'")
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        raise ValueError(f"tie_word_embeddings is {config['tie_word_embeddings']!r}; supported: true, false")
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor is {config['partial_rotary_factor']}; supported: 1.0")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "of unknown method")
        raise ValueError(f"quantization_config is present ({method}); supported: none")
    geometry = read_geometry(config)
    if config["model_type"] == "llama" and geometry.hidden_size % geometry.num_attention_heads:
        # LlamaConfig insists on it even where head_dim is explicit.
        raise ValueError(
            f"num_attention_heads is {geometry.num_attention_heads}; supported: "
            f"divisors of hidden_size ({geometry.hidden_size})"
        )
    rope_settings(config)


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether a class of transformers computes this config.json's model."""
    return config["model_type"] in STOCK_TYPES


def sliced_config(config: Mapping[str, Any], plan: PrunePlan) -> dict[str, Any]:
    """config.json of the sliced model, for stock transformers wherever that is possible.

    Save it as is: ``save_pretrained`` of transformers 5 drops the keys that version 4 reads.
    """
    target = plan.target
    sliced = {key: value for key, value in config.items() if key != "auto_map"}
    sliced |= {
        "head_dim": target.head_dim,
        "num_attention_heads": target.num_attention_heads,
        "num_key_value_heads": target.num_key_value_heads,
        "intermediate_size": target.intermediate_size,
    }
    if config["model_type"] == "llama" and target.hidden_size % target.num_attention_heads:
        # The same computation without LlamaConfig's condition on the number of heads.
        sliced |= {"model_type": "mistral", "sliding_window": None}
    if target.head_dim < plan.source.head_dim and plan.rotary == "kept":
        if plan.pair_scope == "model" and OWN_FREQUENCIES not in config:
            sliced |= kept_pairs_settings(config, plan.rotary_pairs(0, 0))
        else:
            sliced |= {"model_type": OWN_TYPE, OWN_FREQUENCIES: _own_frequencies(config, plan)}
    return sliced


def _own_frequencies(config: Mapping[str, Any], plan: PrunePlan) -> list[list[list[float]]]:
    """Inverse frequency of every kept pair: (layers)(key-value heads)(pairs)."""
    before = head_frequencies(config)
    return [
        [before[layer, head, list(plan.rotary_pairs(layer, head))].tolist() for head in range(before.shape[1])]
        for layer in range(before.shape[0])
    ]


def expected_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of the family; an output layer that is tied to the embedding is not stored."""
    hidden, channels = geometry.hidden_size, geometry.intermediate_size
    queries = geometry.num_attention_heads * geometry.head_dim
    keys = geometry.num_key_value_heads * geometry.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (channels, hidden),
        "mlp.up_proj": (channels, hidden),
        "mlp.down_proj": (hidden, channels),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (geometry.vocab_size, hidden)}
    for number in range(geometry.num_layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not geometry.tied_embeddings:
        shapes["lm_head.weight"] = (geometry.vocab_size, hidden)
    return shapes


def layer_of(name: str) -> int | None:
    """Index of the decoder layer that a parameter belongs to; ``None`` outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def down_projection(layer: int) -> str:
    """Name of the weight that reads the MLP channels of a layer."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def layer_weights(tensors: Mapping[str, Tensor]) -> LayerWeights | None:
    """The projections among the tensors of one layer; None where these are not those of a layer."""
    from transact.prune.weights import LayerWeights

    found = {match[1]: tensor for name, tensor in tensors.items() if (match := _PROJECTION.fullmatch(name))}
    if not found:
        return None
    return LayerWeights(**{field: found[short] for short, field in PROJECTIONS.items()})


def slice_tensors(
    tensors: Mapping[str, Tensor], plan: PrunePlan, gram: LayerGram | None = None, ridge: float | None = None
) -> dict[str, Tensor]:
    """The sliced version of the parameters of one layer; parameters outside the layers pass unchanged.

    Args:
        tensors: by their names in the state dict of ``LlamaForCausalLM``.
        plan: what to keep.
        gram: as in `transact.prune.slicing.cut_layer`; so is ridge.
        ridge: of the refit.
    """
    from transact.prune.slicing import cut_layer

    weights = layer_weights(tensors)
    layer = layer_of(next(iter(tensors)))
    if weights is None or layer is None:
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
    return replace_projections(tensors, cut_layer(weights, plan, layer, gram, ridge))


def replace_projections(tensors: Mapping[str, Tensor], weights: LayerWeights) -> dict[str, Tensor]:
    """The tensors of a layer with other projections."""
    return {
        name: getattr(weights, PROJECTIONS[match[1]]) if (match := _PROJECTION.fullmatch(name)) else tensor
        for name, tensor in tensors.items()
    }


def _dimension(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} must be a whole number above 0, got {value!r}")
    return value
