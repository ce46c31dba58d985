from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.selections import hand_selection
from transact.geometry import Geometry
from transact.models.llama import (
    check_supported,
    layer_of,
    read_geometry,
    slice_tensors,
    sliced_config,
)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "intermediate_size": 4,
    "vocab_size": 5,
    "rms_norm_eps": 1e-5,
    "auto_map": {"AutoModel": "modeling.Model"},
    "tie_word_embeddings": True,
}
SELECTION = hand_selection(read_geometry(CONFIG), (0, 2), (((0, 1, 2, 5),), ((1, 2, 3, 4),)), ((0, 3), (1, 2)))


def test_reads_geometry_with_defaults() -> None:
    config = {key: CONFIG[key] for key in CONFIG if key not in ("num_key_value_heads", "head_dim")}
    assert read_geometry(config) == Geometry(
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=4,
        vocab_size=5,
        tied_embeddings=True,
    )


@pytest.mark.parametrize("value", [None, "4", [4, 4]])
def test_names_the_field_that_is_missing_or_odd(value: object) -> None:
    with pytest.raises(ValueError, match="intermediate_size must be a whole number"):
        read_geometry(CONFIG | {"intermediate_size": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; supported: llama, mistral, qwen2, qwen3$"),
        ({"model_type": None}, "model_type is null; supported: llama"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim must be a whole number"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "num_key_value_heads must be a whole number"),
        (
            {"model_type": "mistral", "max_position_embeddings": 64, "sliding_window": "all"},
            "sliding_window must be a whole number above 0, or null; got 'all'",
        ),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config.*\(awq\)"),
        ({"hidden_size": 9}, r"divisors of hidden_size \(9\)"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_refuses_unsupported_models(change: dict[str, Any], message: str) -> None:
    check_supported(CONFIG)
    with pytest.raises(ValueError, match=message) as error:
        check_supported(CONFIG | change)
    assert "\n" not in str(error.value)


def test_sliced_config_keeps_what_it_does_not_cut() -> None:
    sliced = sliced_config(CONFIG, SELECTION)
    assert (sliced["head_dim"], sliced["intermediate_size"]) == (4, 2)
    assert read_geometry(sliced) == SELECTION.target
    assert "auto_map" not in sliced and "auto_map" in CONFIG
    assert sliced["rms_norm_eps"] == 1e-5 and sliced["tie_word_embeddings"] is True


def test_sliced_config_leaves_rope_alone_when_all_pairs_stay() -> None:
    selection = hand_selection(SELECTION.source, (0, 1, 2), ((tuple(range(6)),),) * 2, ((0, 3), (1, 2)))
    expected = {key: value for key, value in CONFIG.items() if key != "auto_map"}
    assert sliced_config(CONFIG, selection) == expected | {"intermediate_size": 2}


def test_layer_of() -> None:
    assert layer_of("model.layers.13.mlp.up_proj.weight") == 13
    assert layer_of("model.embed_tokens.weight") is None


def test_heads_that_do_not_divide_the_hidden_size_make_a_mistral() -> None:
    """LlamaConfig refuses 3 heads on 8 dims; MistralConfig computes the same and takes them."""
    source = replace(SELECTION.source, num_attention_heads=4, num_key_value_heads=4)
    config = CONFIG | {"num_attention_heads": 4, "num_key_value_heads": 4}
    selection = hand_selection(
        source,
        (0, 1, 2),
        ((tuple(range(6)),) * 3,) * 2,
        ((0, 3), (1, 2)),
        target=replace(source, num_attention_heads=3, num_key_value_heads=3, intermediate_size=2),
        query_heads=((0, 1, 3), (1, 2, 3)),
        key_value_heads=((0, 1, 3), (1, 2, 3)),
        query_key_dims=((tuple(range(6)),) * 3,) * 2,
    )
    sliced = sliced_config(config, selection)
    assert (sliced["model_type"], sliced["sliding_window"], sliced["num_attention_heads"]) == ("mistral", None, 3)
    check_supported(sliced)


def layer(number: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {"self_attn.q": (12, 8), "self_attn.k": (6, 8), "self_attn.v": (6, 8), "self_attn.o": (8, 12)}
    shapes |= {"mlp.gate": (4, 8), "mlp.up": (4, 8), "mlp.down": (8, 4)}
    tensors = {f"model.layers.{number}.{name}_proj.weight": torch.randn(*shape) for name, shape in shapes.items()}
    tensors[f"model.layers.{number}.input_layernorm.weight"] = torch.randn(8)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def test_sliced_shapes() -> None:
    sliced = slice_tensors(layer(1, torch.bfloat16), SELECTION)
    shapes = {name.removeprefix("model.layers.1."): tuple(tensor.shape) for name, tensor in sliced.items()}
    assert shapes == {
        "self_attn.q_proj.weight": (8, 8),
        "self_attn.k_proj.weight": (4, 8),
        "self_attn.v_proj.weight": (4, 8),
        "self_attn.o_proj.weight": (8, 8),
        "mlp.gate_proj.weight": (2, 8),
        "mlp.up_proj.weight": (2, 8),
        "mlp.down_proj.weight": (8, 2),
        "input_layernorm.weight": (8,),
    }
    assert all(tensor.is_contiguous() for tensor in sliced.values())


def test_query_is_rounded_once_only() -> None:
    """Slicing works in float32, so a 16-bit weight is rounded when it is written, and only then."""
    weights = layer(0, torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj.weight"
    rows = weights[name][[0, 2, 3, 5, 6, 8, 9, 11]].double()
    assert torch.equal(slice_tensors(weights, SELECTION)[name].bfloat16(), (rows * (4 / 6) ** 0.5).float().bfloat16())


def test_everything_else_is_unchanged() -> None:
    weights = layer(0, torch.float32)
    name = "model.layers.0.input_layernorm.weight"
    assert slice_tensors(weights, SELECTION)[name] is weights[name]
    embedding = torch.randn(5, 8)
    assert slice_tensors({"model.embed_tokens.weight": embedding}, SELECTION)["model.embed_tokens.weight"] is embedding
