"""Closed forms against a real model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from transact.config.pruning import PROJECTIONS
from transact.geometry import Geometry, Widths, geometry_changes
from transact.models.adapters import Adapters, inject, train_adapters_alone
from transact.models.llama import layerwise_config
from transact.models.stock import stock_class

DIMENSIONS: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not hidden_size / heads, as after a cut
    "intermediate_size": 40,
    "vocab_size": 48,
    "tied_embeddings": False,
}


def settings_of(geometry: Geometry) -> dict[str, Any]:
    return {
        "hidden_size": geometry.hidden_size,
        "num_hidden_layers": geometry.num_layers,
        "num_attention_heads": geometry.num_attention_heads,
        "num_key_value_heads": geometry.num_key_value_heads,
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.intermediate_size,
        "vocab_size": geometry.vocab_size,
        "tie_word_embeddings": geometry.tied_embeddings,
    }


def build_model(geometry: Geometry) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**settings_of(geometry), attn_implementation="eager"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("key_value_heads", [2, 4])
def test_counts_equal_those_of_a_real_model(tied: bool, key_value_heads: int) -> None:
    geometry = Geometry(**DIMENSIONS | {"tied_embeddings": tied, "num_key_value_heads": key_value_heads})
    model = build_model(geometry)
    assert geometry.parameters() == sum(p.numel() for p in model.parameters())
    projections = [p for name, p in model.named_parameters() if "_proj" in name]
    assert geometry.transitional_parameters() == sum(p.numel() for p in projections)

    tokens = torch.zeros(3, 10, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(tokens).past_key_values
    assert geometry.flops_per_token(context_length=10) * tokens.numel() == counter.get_total_flops()

    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert geometry.kv_bytes_per_token(bytes_per_element=4) == 4 * elements // tokens.numel()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_the_work_of_generation_is_that_of_a_real_model(tied: bool, key_value_heads: int) -> None:
    """Prefill for one next token, then one step with a KV cache: FLOPs, and bytes of what the step reads."""
    geometry = Geometry(**DIMENSIONS | {"tied_embeddings": tied, "num_key_value_heads": key_value_heads})
    model = build_model(geometry)
    sequences, prompt_tokens = 3, 10
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(torch.zeros(sequences, prompt_tokens, dtype=torch.long), logits_to_keep=1).past_key_values
    assert sequences * geometry.prefill_flops(prompt_tokens) == counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(torch.zeros(sequences, 1, dtype=torch.long), past_key_values=cache).past_key_values
    assert sequences * geometry.flops_per_token(prompt_tokens + 1) == counter.get_total_flops()

    embedding = model.get_input_embeddings().weight
    read = sum(weight.nbytes for weight in model.parameters() if tied or weight is not embedding)
    read += sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    read += 0 if tied else embedding[:sequences].nbytes
    assert geometry.decode_bytes(prompt_tokens + 1, sequences, bytes_per_element=4) == read


def test_llama_7b_has_its_published_size() -> None:
    llama_7b = Geometry(
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        intermediate_size=11008,
        vocab_size=32000,
        tied_embeddings=False,
    )
    assert llama_7b.parameters() == 6_738_415_616
    assert llama_7b.kv_bytes_per_token() == 524_288


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"head_dim": 7}, "head_dim must be even, got 7"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple"),
    ],
)
def test_refuses_impossible_dimensions(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**DIMENSIONS | change)


def test_context_length_must_be_positive() -> None:
    with pytest.raises(ValueError, match="context_length must be positive"):
        Geometry(**DIMENSIONS).flops_per_token(0)


def test_json_round_trip_refuses_other_keys() -> None:
    geometry = Geometry(**DIMENSIONS)
    values = json.loads(json.dumps(geometry.to_dict()))
    assert Geometry.from_dict(values) == geometry
    with pytest.raises(ValueError, match=r"unknown keys \['depth'\]"):
        Geometry.from_dict(values | {"depth": 3})
    del values["head_dim"]
    with pytest.raises(ValueError, match=r"lacks keys \['head_dim'\]"):
        Geometry.from_dict(values)


LAYERS = (Widths(num_key_value_heads=2, intermediate_size=12), Widths(num_key_value_heads=1, intermediate_size=40))


def test_counts_of_layers_that_differ_equal_those_of_a_real_model() -> None:
    geometry = Geometry(**DIMENSIONS).with_layers(LAYERS)
    config = {"model_type": "llama", **settings_of(Geometry(**DIMENSIONS))}
    model_class, described = stock_class(layerwise_config(config, geometry), "eager")
    described.use_cache = True
    model = model_class(described)
    assert geometry.parameters() == sum(p.numel() for p in model.parameters())
    assert geometry.largest_layer() == max(
        sum(p.numel() for name, p in layer.named_parameters() if "_proj" in name) for layer in model.model.layers
    )
    tokens = torch.zeros(3, 10, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(tokens).past_key_values
    assert geometry.flops_per_token(context_length=10) * tokens.numel() == counter.get_total_flops()
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert geometry.kv_bytes_per_token(bytes_per_element=4) == 4 * elements // tokens.numel()


def test_layers_that_differ_are_kept_as_such_and_alike_ones_are_not() -> None:
    uniform = Geometry(**DIMENSIONS)
    geometry = uniform.with_layers(LAYERS)
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert "layers" not in uniform.to_dict()
    assert uniform.with_layers(uniform.widths()) == uniform == geometry.with_layers(uniform.widths())
    assert [geometry.of_layer(number).num_attention_heads for number in (0, 1)] == [4, 2]
    assert (geometry.mean("intermediate_size"), geometry.mean("num_key_value_heads")) == (26, 1.5)
    changed = geometry_changes(replace(uniform, head_dim=16), geometry)
    assert changed == (
        "num_attention_heads 4 -> 2 to 4 (3.0 on average), num_key_value_heads 2 -> 1 to 2 (1.5 on average), "
        "head_dim 16 -> 8, intermediate_size 40 -> 12 to 40 (26 on average)"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": LAYERS[:1]}, "2 layers, but widths of 1"),
        ({"layers": LAYERS, "intermediate_size": 41}, "intermediate_size must be that of the widest layer, 40, got 41"),
        ({"layers": (LAYERS[1], replace(LAYERS[1], intermediate_size=0))}, "intermediate_size must be positive, got 0"),
    ],
)
def test_widths_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Geometry(**(DIMENSIONS | changes))


@pytest.mark.parametrize("targets", [PROJECTIONS, ("o_proj", "up_proj")], ids=["all", "two"])
@pytest.mark.parametrize("layers", [(), LAYERS], ids=["alike", "differ"])
def test_adapters_are_counted_as_peft_makes_and_torch_computes_them(
    targets: tuple[str, ...], layers: tuple[Widths, ...]
) -> None:
    """Their parameters, and the FLOPs of a step that trains them: no gradients of the weights beside them."""
    geometry = Geometry(**DIMENSIONS)
    geometry = geometry.with_layers(layers) if layers else geometry
    config = {"model_type": "llama", **settings_of(Geometry(**DIMENSIONS))}
    model_class, described = stock_class(layerwise_config(config, geometry) if layers else config, "eager")
    model = model_class(described)
    inject(model, Adapters(rank=3, alpha=6.0, targets=targets))
    train_adapters_alone(model)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert geometry.adapter_parameters(3, targets) == trained
    tokens = torch.zeros(3, 10, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    counted = geometry.training_flops_per_token(10, adapters=trained) * tokens.numel()
    assert counted == counter.get_total_flops()
    assert counted < geometry.training_flops_per_token(10) * tokens.numel()
