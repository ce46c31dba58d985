"""LLaMA-like decoders: their configuration, what is cut in which tensor, and the cut config.json.

What differs between families is in `families.py`. Works on the parsed config.json and on single tensors by name, so
a model can be streamed through layer by layer. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transact.config.setting import shown
from transact.geometry import Geometry, Widths
from transact.models.families import LLAMA, MISTRAL, OWN_FREQUENCIES, PER_LAYER, STOCK_TYPES, family_of
from transact.models.rotary import (
    DEFAULT_MAX_POSITION_EMBEDDINGS,
    check_number,
    check_rope,
    kept_pairs_settings,
    layer_frequencies,
)

if TYPE_CHECKING:
    from torch import Tensor

    from transact.pruning.refit import LayerGram, Ridge
    from transact.pruning.selection import Selection
    from transact.pruning.weights import LayerWeights

NORM_EPSILON = 1e-12, 1e-2  # models have 1e-6 or 1e-5
MAX_LAYERS, MAX_DIMENSION = 10_000, 2**31 - 1
HEAD_COUNTS = ("num_attention_heads", "num_key_value_heads")
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
_PROJECTION = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)_proj\.(weight|bias)")
_HEAD_NORM = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_norm\.weight")


def read_geometry(config: Mapping[str, Any]) -> Geometry:
    """Read the dimensions from a config.json.

    Raises:
        ValueError: a field is missing or not a whole number, or dimensions do not fit together.
    """
    hidden_size = _dimension(config, "hidden_size")
    num_attention_heads = _dimension(config, "num_attention_heads")
    family = family_of(config)
    widest = Geometry(
        hidden_size=hidden_size,
        num_layers=_dimension(config, "num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=_dimension(config, "num_key_value_heads", num_attention_heads),
        head_dim=_dimension(config, "head_dim", hidden_size // num_attention_heads),
        intermediate_size=_dimension(config, "intermediate_size"),
        vocab_size=_dimension(config, "vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        query_key_value_bias=family.query_key_value_bias,
        query_key_norm=family.query_key_norm,
    )
    if not config.get(PER_LAYER):
        return widest
    own = [config[PER_LAYER].get(str(number), {}) for number in range(widest.num_layers)]
    return widest.with_layers(
        [
            Widths(
                num_key_value_heads=_dimension(each, "num_key_value_heads", widest.num_key_value_heads),
                intermediate_size=_dimension(each, "intermediate_size", widest.intermediate_size),
            )
            for each in own
        ]
    )


def check_supported(config: Mapping[str, Any], *, as_parent: bool = True) -> None:
    """Refuse a model that slicing would silently damage, or whose result no stock class loads.

    as_parent: it is to be cut, so its layers must be alike.

    Raises:
        ValueError: one line with the field, its value and what is supported.
    """
    if config.get("model_type") not in STOCK_TYPES and (as_parent or is_stock(config)):
        raise ValueError(f"model_type is {shown(config.get('model_type'))}; supported: {', '.join(STOCK_TYPES)}")
    family = family_of(config)
    family.check(config)
    for name in family.required:
        _dimension(config, name)
    if config.get("max_position_embeddings") is not None:
        _dimension(config, "max_position_embeddings")
    window = family.window(config)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise ValueError(f"config.json: sliding_window must be a whole number above 0, or null; got {shown(window)}")
    if config.get("rms_norm_eps") is not None:
        check_number("rms_norm_eps", config["rms_norm_eps"], *NORM_EPSILON)
    check_special_tokens(config, "config.json", _dimension(config, "vocab_size"))
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {shown(config['hidden_act'])}; supported: 'silu'")
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        raise ValueError(f"tie_word_embeddings is {shown(config['tie_word_embeddings'])}; supported: true, false")
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor is {config['partial_rotary_factor']}; supported: 1.0")
    if config.get(PER_LAYER) and as_parent:
        raise ValueError("per_layer_config is present; supported: layers that are all alike")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "of unknown method")
        raise ValueError(f"quantization_config is present ({method}); supported: none")
    geometry = read_geometry(config)
    if family.heads_divide_hidden_size and geometry.hidden_size % geometry.num_attention_heads:
        # LlamaConfig requires it even where head_dim is explicit.
        raise ValueError(
            f"num_attention_heads is {geometry.num_attention_heads}; supported: "
            f"divisors of hidden_size ({geometry.hidden_size})"
        )
    check_rope(config, geometry.head_dim)


def check_special_tokens(config: Mapping[str, Any], file: str, vocab_size: int) -> None:
    """Check that the ids of special tokens are in the vocabulary: an embedding has no row for others.

    Raises:
        ValueError: names the field of the file.
    """
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = config.get(name)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
                raise ValueError(
                    f"{file}: {name} is {shown(value)}; it must be null or a token of the vocabulary "
                    f"(0 to {vocab_size - 1})"
                )


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether a class of transformers computes this config.json's model, and not code that its folder carries."""
    return not family_of(config).modules


def code_files(config: Mapping[str, Any]) -> list[Path]:
    """Return the files of this package that a folder with this config.json carries as code, if any."""
    return [Path(__file__).with_name(f"{module}.py") for module in family_of(config).modules]


def sliced_config(config: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Return the config.json of the sliced model, for stock transformers wherever that is possible.

    Save it as is: ``save_pretrained`` of transformers 5 drops the keys that version 4 reads.
    """
    target = selection.target
    sliced = {key: value for key, value in config.items() if key not in ("auto_map", PER_LAYER)}
    sliced |= {
        "head_dim": target.head_dim,
        "num_attention_heads": target.num_attention_heads,
        "num_key_value_heads": target.num_key_value_heads,
        "intermediate_size": target.intermediate_size,
    }
    # Frequencies of their own are listed by head, so they change where heads go.
    changes = target.head_dim < selection.source.head_dim or OWN_FREQUENCIES in config
    if changes and selection.rotary == "kept":
        if selection.pair_scope == "model" and OWN_FREQUENCIES not in config:
            sliced |= kept_pairs_settings(config, selection.rotary_pairs(0, 0))
        else:
            sliced[OWN_FREQUENCIES] = _own_frequencies(config, selection)
    if target.layers or OWN_FREQUENCIES in sliced:
        # The heads of the whole model stay at the top: LlamaConfig insists that they divide hidden_size.
        return layerwise_config(sliced | {name: config[name] for name in HEAD_COUNTS if name in config}, target)
    if config["model_type"] == LLAMA.model_type and target.hidden_size % target.num_attention_heads:
        # Mistral computes the same, without LlamaConfig's condition on the number of heads.
        sliced |= {"model_type": MISTRAL.model_type, "sliding_window": None} | _stated_limit(config)
    return sliced


def _stated_limit(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of positions as another family must have it stated, whose default differs."""
    return {"max_position_embeddings": config.get("max_position_embeddings", DEFAULT_MAX_POSITION_EMBEDDINGS)}


def layerwise_config(config: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
    """Return a config.json with which transformers builds every layer by itself, by the code in the folder."""
    group = geometry.queries_per_key_value_head
    layers = {
        str(number): asdict(each) | {"num_attention_heads": group * each.num_key_value_heads}
        for number, each in enumerate(geometry.widths())
    }
    layerwise = dict(config) | {PER_LAYER: layers} | _stated_limit(config)
    whole = config.get("num_key_value_heads") or config["num_attention_heads"]
    if any(each.num_key_value_heads != whole for each in geometry.widths()):
        # LlamaConfig looks at the number of query heads before any layer does.
        layerwise["allow_global_per_layer_attribute_access"] = True
    family = family_of(layerwise)
    names = {
        "AutoConfig": family.architecture.replace("ForCausalLM", "Config"),
        "AutoModel": family.architecture.replace("ForCausalLM", "Model"),
        "AutoModelForCausalLM": family.architecture,
    }
    stated = {name: f"{family.modules[0]}.{each}" for name, each in names.items()}
    return layerwise | {"model_type": family.model_type, "auto_map": stated}


def _own_frequencies(config: Mapping[str, Any], selection: Selection) -> list[list[list[float]]]:
    """Return the inverse frequency of every kept pair: (layers)(1 where the heads share them, or heads)(pairs)."""
    found = []
    for layer, before in enumerate(layer_frequencies(config)):
        heads = selection.key_value_heads[layer]
        shared = len(before) == 1 and selection.pair_scope != "head"
        found.append(
            [
                before[0 if len(before) == 1 else head, list(selection.rotary_pairs(layer, place))].tolist()
                for place, head in enumerate(heads[:1] if shared else heads)
            ]
        )
    return found


def expected_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by name; an output layer that is tied to the embedding is not stored."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (geometry.vocab_size, geometry.hidden_size)}
    for number in range(geometry.num_layers):
        own = _layer_shapes(geometry.of_layer(number))
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in own.items()}
    shapes["model.norm.weight"] = (geometry.hidden_size,)
    if not geometry.tied_embeddings:
        shapes["lm_head.weight"] = (geometry.vocab_size, geometry.hidden_size)
    return shapes


def _layer_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    hidden, channels = geometry.hidden_size, geometry.intermediate_size
    queries = geometry.num_attention_heads * geometry.head_dim
    keys = geometry.num_key_value_heads * geometry.head_dim
    layer: dict[str, tuple[int, ...]] = {
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
    layer = {f"{name}.weight": shape for name, shape in layer.items()}
    if geometry.query_key_value_bias:
        layer |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in (("q", queries), ("k", keys), ("v", keys))}
    if geometry.query_key_norm:
        layer |= {f"self_attn.{name}_norm.weight": (geometry.head_dim,) for name in ("q", "k")}
    return layer


def layer_of(name: str) -> int | None:
    """Return the index of the decoder layer that a parameter belongs to; ``None`` outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def down_projection(layer: int) -> str:
    """Return the name of the weight that reads the MLP channels of a layer."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def output_projection(layer: int) -> str:
    """Return the name of the weight that reads the attention heads of a layer."""
    return f"model.layers.{layer}.self_attn.o_proj.weight"


def layer_weights(tensors: Mapping[str, Tensor]) -> LayerWeights | None:
    """Return the weights of one layer that a cut changes; None where the tensors are not those of a layer."""
    import torch

    from transact.pruning.weights import LayerWeights

    found: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _PROJECTION.fullmatch(name):
            (biases if match[2] == "bias" else found)[PROJECTIONS[match[1]]] = tensor
        elif match := _HEAD_NORM.fullmatch(name):
            found[f"{PROJECTIONS[match[1]]}_norm"] = tensor
    if not found:
        return None
    # The bias becomes the last column: what a cut does to rows of the weight is right for the bias too.
    found |= {field: torch.cat([found[field], bias.unsqueeze(1)], dim=1) for field, bias in biases.items()}
    return LayerWeights(**found)


def slice_tensors(
    tensors: Mapping[str, Tensor], selection: Selection, gram: LayerGram | None = None, ridge: Ridge | None = None
) -> dict[str, Tensor]:
    """Slice the parameters of one layer; parameters outside the layers pass unchanged.

    Args:
        tensors: by their names in the state dict of the family's stock class.
        selection: what to keep.
        gram: as in `transact.pruning.slicing.cut_layer`; so is ridge.
        ridge: of the refit.
    """
    from transact.pruning.slicing import cut_layer

    weights = layer_weights(tensors)
    layer = layer_of(next(iter(tensors)))
    if weights is None or layer is None:
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
    return replace_projections(tensors, cut_layer(weights, selection, layer, gram, ridge))


def replace_projections(tensors: Mapping[str, Tensor], weights: LayerWeights) -> dict[str, Tensor]:
    """Return the tensors of a layer with its projections, their biases and the norms of heads replaced."""

    def replaced(name: str, tensor: Tensor) -> Tensor:
        if match := _HEAD_NORM.fullmatch(name):
            return getattr(weights, f"{PROJECTIONS[match[1]]}_norm")
        if not (match := _PROJECTION.fullmatch(name)):
            return tensor
        both = getattr(weights, PROJECTIONS[match[1]])
        if match[2] == "bias":
            return both[:, -1].contiguous()
        has_bias = name.removesuffix("weight") + "bias" in tensors
        return both[:, :-1].contiguous() if has_bias else both

    return {name: replaced(name, tensor) for name, tensor in tensors.items()}


def _dimension(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} must be a whole number above 0, got {shown(value)}")
    largest = MAX_LAYERS if name == "num_hidden_layers" else MAX_DIMENSION
    if value > largest:
        raise ValueError(f"config.json: {name} must be at most {largest}, got {value!r}")
    return value
