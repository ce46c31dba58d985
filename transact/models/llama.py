"""The LLaMA family: its configuration, what is cut in which tensor, and the cut config.json.

Works on the parsed config.json and on single tensors by name, so a checkpoint can be streamed
through layer by layer. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry
from transact.models.rotary import kept_pairs_settings, rope_settings

if TYPE_CHECKING:
    from torch import Tensor

    from transact.prune.planning import PrunePlan

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
    if config.get("model_type") != "llama":
        raise ValueError(f"model_type is {config.get('model_type')!r}; supported: 'llama'")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise ValueError(f"{name} is {config[name]}; supported: False")
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor is {config['partial_rotary_factor']}; supported: 1.0")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "of unknown method")
        raise ValueError(f"quantization_config is present ({method}); supported: none")
    geometry = read_geometry(config)
    if geometry.hidden_size % geometry.num_attention_heads:
        # LlamaConfig insists on it even where head_dim is explicit.
        raise ValueError(
            f"num_attention_heads is {geometry.num_attention_heads}; supported: "
            f"divisors of hidden_size ({geometry.hidden_size})"
        )
    rope_settings(config)


def sliced_config(config: Mapping[str, Any], plan: PrunePlan) -> dict[str, Any]:
    """config.json of the sliced model, for stock transformers.

    Save it as is: ``save_pretrained`` of transformers 5 drops the keys that version 4 reads.
    """
    sliced = {key: value for key, value in config.items() if key != "auto_map"}
    sliced["head_dim"] = plan.target.head_dim
    sliced["intermediate_size"] = plan.target.intermediate_size
    if plan.target.head_dim < plan.source.head_dim:
        sliced |= kept_pairs_settings(config, plan.rotary_pairs)
    return sliced


def layer_of(name: str) -> int | None:
    """Index of the decoder layer that a parameter belongs to; ``None`` outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def slice_tensor(name: str, tensor: Tensor, plan: PrunePlan) -> Tensor:
    """The sliced version of one parameter of ``LlamaForCausalLM``, same dtype, contiguous.

    Args:
        name: as in the state dict, ``model.layers.3.self_attn.q_proj.weight``.
        tensor: (outputs, inputs) for a projection; anything else is returned unchanged.
        plan: what to keep.
    """
    from transact.prune import slicing

    match, layer = _PROJECTION.fullmatch(name), layer_of(name)
    if match is None or layer is None:
        return tensor.contiguous()
    match match[1]:
        case "q":
            rows = _select(tensor, 0, slicing.query_rows(plan))
            return _scaled(rows, slicing.query_scale(plan))
        case "k":
            return _select(tensor, 0, slicing.key_rows(plan))
        case "v":
            return _select(tensor, 0, slicing.value_rows(plan, layer))
        case "o":
            return _select(tensor, 1, slicing.output_columns(plan, layer))
        case "gate" | "up":
            return _select(tensor, 0, slicing.channel_indices(plan, layer))
        case "down":
            return _select(tensor, 1, slicing.channel_indices(plan, layer))
    raise AssertionError(f"unknown projection {name}")


def _select(weight: Tensor, dim: int, indices: Tensor) -> Tensor:
    return weight.index_select(dim, indices.to(weight.device))


def _scaled(weight: Tensor, factor: float) -> Tensor:
    """Multiply in float32 at least, so that a 16-bit weight is rounded once only."""
    import torch

    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return (wide * factor).to(weight.dtype)


def _dimension(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int):
        raise ValueError(f"config.json: {name} must be a whole number, got {value!r}")
    return value
