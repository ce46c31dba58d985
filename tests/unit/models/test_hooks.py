"""Hooked statistics against a plain recomputation from a recorded forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from transact.geometry import Geometry
from transact.models.hooks import collect_statistics
from transact.models.llama import read_geometry
from transact.prune.statistics import ActivationStatistics


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=80,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def geometry(model: LlamaForCausalLM) -> Geometry:
    return read_geometry(model.config.to_dict())


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 80, (2, 12), generator=torch.Generator().manual_seed(seed))


def count_hooks(model: LlamaForCausalLM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def recompute(model: Any, batches: list[Tensor]) -> dict[str, Tensor]:
    """Sums of squares from hidden states, with the model's own weights and loops over heads."""
    sums = ActivationStatistics.zeros(read_geometry(model.config.to_dict())).to_tensors()
    sums["num_tokens"] += sum(batch.numel() for batch in batches)
    for batch in batches:
        outputs = model(batch, output_hidden_states=True, output_attentions=True)
        for layer, block in enumerate(model.model.layers):
            attention, mlp = block.self_attn, block.mlp
            stream = outputs.hidden_states[layer]  # (B, T, hidden)
            normed = block.input_layernorm(stream)
            heads = {name: getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, 16)) for name in "qkv"}
            for kind, name in (("query", "q"), ("key", "k")):
                pairs = heads[name][..., :8] ** 2 + heads[name][..., 8:] ** 2
                sums[kind][layer] += pairs.sum((0, 1))
            mixed = torch.zeros_like(heads["q"])
            for head in range(4):
                mixed[:, :, head] = outputs.attentions[layer][:, head] @ heads["v"][:, :, head // 2]
            sums["attention_output"][layer] += (mixed**2).sum((0, 1))
            after = block.post_attention_layernorm(stream + attention.o_proj(mixed.flatten(-2)))
            inner = mlp.act_fn(mlp.gate_proj(after)) * mlp.up_proj(after)
            sums["intermediate"][layer] += (inner**2).sum((0, 1))
    return sums


def test_equals_a_plain_recomputation(model: LlamaForCausalLM, geometry: Geometry) -> None:
    batches = [tokens(1), tokens(2)]
    with torch.no_grad(), collect_statistics(model, geometry) as collector:
        for batch in batches:
            model(batch)
    collected = collector.statistics(num_tokens=48).to_tensors()
    for kind, expected in recompute(model, batches).items():
        torch.testing.assert_close(collected[kind], expected, rtol=1e-5, atol=0.0)


def test_disabled_forwards_do_not_count(model: LlamaForCausalLM, geometry: Geometry) -> None:
    with collect_statistics(model, geometry) as collector:
        model(tokens(1))
        before = collector.statistics(24)
        collector.enabled = False
        model(tokens(2))
        after = collector.statistics(24)
    assert not before.query.requires_grad
    assert before.query.dtype == torch.float64
    assert torch.equal(before.query, after.query) and before.query.sum() > 0


def test_nothing_counted_is_all_zero(model: LlamaForCausalLM, geometry: Geometry) -> None:
    with collect_statistics(model, geometry) as collector:
        pass
    assert all((tensor == 0).all() for tensor in collector.statistics(0).to_tensors().values())


def test_hooks_go_away_even_after_an_error(model: LlamaForCausalLM, geometry: Geometry) -> None:
    assert count_hooks(model) == 0
    with pytest.raises(RuntimeError), collect_statistics(model, geometry):
        assert count_hooks(model) == 4 * geometry.num_layers
        raise RuntimeError
    assert count_hooks(model) == 0
