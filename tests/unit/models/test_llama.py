from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from transact.geometry import Geometry
from transact.models.llama import (
    check_supported,
    layer_of,
    read_geometry,
    slice_tensor,
    sliced_config,
)
from transact.prune.planning import PrunePlan

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
PLAN = PrunePlan(
    rotary_pairs=(0, 2),
    value_dims=(((0, 1, 2, 5),), ((1, 2, 3, 4),)),
    channels=((0, 3), (1, 2)),
    source=read_geometry(CONFIG),
    target=replace(read_geometry(CONFIG), head_dim=4, intermediate_size=2),
    asked=0.3,
    reached=0.3,
    criterion="activation_norm",
)


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
        ({"model_type": "qwen2"}, "model_type is 'qwen2'; supported: 'llama'"),
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
    sliced = sliced_config(CONFIG, PLAN)
    assert (sliced["head_dim"], sliced["intermediate_size"]) == (4, 2)
    assert read_geometry(sliced) == PLAN.target
    assert "auto_map" not in sliced and "auto_map" in CONFIG
    assert sliced["rms_norm_eps"] == 1e-5 and sliced["tie_word_embeddings"] is True


def test_sliced_config_leaves_rope_alone_when_all_pairs_stay() -> None:
    plan = replace(
        PLAN,
        target=replace(PLAN.source, intermediate_size=2),
        rotary_pairs=(0, 1, 2),
        value_dims=((tuple(range(6)),),) * 2,
    )
    expected = {key: value for key, value in CONFIG.items() if key != "auto_map"}
    assert sliced_config(CONFIG, plan) == expected | {"intermediate_size": 2}


def test_layer_of() -> None:
    assert layer_of("model.layers.13.mlp.up_proj.weight") == 13
    assert layer_of("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self_attn.q_proj", (8, 8)),
        ("self_attn.k_proj", (4, 8)),
        ("self_attn.v_proj", (4, 8)),
        ("self_attn.o_proj", (8, 8)),
        ("mlp.gate_proj", (2, 8)),
        ("mlp.up_proj", (2, 8)),
        ("mlp.down_proj", (8, 2)),
    ],
)
def test_sliced_shapes(name: str, expected: tuple[int, int]) -> None:
    shapes = {"q_proj": (12, 8), "o_proj": (8, 12), "down_proj": (8, 4), "k_proj": (6, 8)}
    shapes |= {"v_proj": (6, 8), "gate_proj": (4, 8), "up_proj": (4, 8)}
    weight = torch.randn(shapes[name.split(".")[1]]).bfloat16()
    sliced = slice_tensor(f"model.layers.1.{name}.weight", weight, PLAN)
    assert sliced.shape == expected
    assert sliced.is_contiguous() and sliced.dtype == torch.bfloat16


def test_query_is_rounded_once_only() -> None:
    weight = torch.randn(12, 8).bfloat16()
    sliced = slice_tensor("model.layers.0.self_attn.q_proj.weight", weight, PLAN)
    rows = weight[[0, 2, 3, 5, 6, 8, 9, 11]].double()
    assert torch.equal(sliced, (rows * (4 / 6) ** 0.5).float().bfloat16())


def test_everything_else_is_unchanged() -> None:
    weight = torch.randn(8)
    name = "model.layers.0.input_layernorm.weight"
    assert slice_tensor(name, weight, PLAN) is weight


def test_import_is_light() -> None:
    code = "import sys, transact.models.llama; print({'torch', 'transformers'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "set()", output.stderr
