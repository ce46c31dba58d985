"""Hooked statistics against a plain recomputation from a recorded forward."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from transact.geometry import Geometry
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.llama import read_geometry
from transact.pruning.pair_scores import (
    LOGIT_VARIANCE,
    TAYLOR_CHANNELS,
    TAYLOR_PAIRS,
    TAYLOR_VALUES,
    TOKEN_PRODUCT,
)
from transact.pruning.statistics import INTERMEDIATE, QUERY, SQUARES, ActivationStatistics, Statistic

TAYLOR = (TAYLOR_PAIRS, TAYLOR_VALUES, TAYLOR_CHANNELS)


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
    assert not before[QUERY].requires_grad
    assert before[QUERY].dtype == torch.float64
    assert torch.equal(before[QUERY], after[QUERY]) and before[QUERY].sum() > 0


def test_nothing_counted_is_all_zero(model: LlamaForCausalLM, geometry: Geometry) -> None:
    with collect_statistics(model, geometry) as collector:
        pass
    assert all((tensor == 0).all() for tensor in collector.statistics(0).to_tensors().values())


@torch.no_grad()
def test_gram_of_chosen_layers(model: Any, geometry: Geometry) -> None:
    """Against the inputs of the output projections, caught here; only the layers asked for are summed."""
    caught: list[Tensor] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    with collect_grams(model, geometry, range(1, 2)) as collector:
        for seed in (1, 2):
            model(tokens(seed))
        collector.enabled = False
        model(tokens(3))
    gram = collector.take_gram(1)
    inner = torch.cat(caught[:2]).flatten(0, 1).double()
    torch.testing.assert_close(gram.intermediate, inner.T @ inner, rtol=1e-5, atol=1e-6)
    assert gram.attention_output.diagonal().min() > 0
    assert collector.take_gram(0).intermediate.abs().max() == 0


@pytest.mark.parametrize("are_whole", [False, True])
@torch.no_grad()
def test_logit_scores_equal_the_model_s_own_logits(model: Any, geometry: Geometry, are_whole: bool) -> None:
    """Variance over attended positions, from the queries and keys that the model rotates itself."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    positions: list[Tensor | None] = []

    def seen(*observed: Any) -> Tensor:
        positions.append(observed[4])
        return LOGIT_VARIANCE.of_batch(*observed)

    watched = replace(LOGIT_VARIANCE, of_batch=seen)
    with collect_statistics(model, geometry, (TOKEN_PRODUCT, watched), are_whole=are_whole) as collector:
        outputs = model(tokens(1), output_hidden_states=True)
    assert [each is None for each in positions] == [are_whole] * geometry.num_layers
    found = collector.statistics(24)
    block = model.model.layers[1]
    normed = block.input_layernorm(outputs.hidden_states[1])
    query, key = (getattr(block.self_attn, f"{name}_proj")(normed).unflatten(-1, (-1, 16)) for name in "qk")
    embedding = model.model.rotary_emb(normed, torch.arange(12)[None])
    query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *embedding)
    head, pair = 3, 5
    parts = query[:, head, :, [pair, pair + 8]] @ key[:, head // 2, :, [pair, pair + 8]].mT / 4
    variance = sum(parts[:, row, : row + 1].var(dim=-1, unbiased=False).sum() for row in range(12))
    torch.testing.assert_close(found[watched][1, head, pair], variance.double(), rtol=1e-4, atol=0)
    norms = query[:, head, :, [pair, pair + 8]].norm(dim=-1) * key[:, head // 2, :, [pair, pair + 8]].norm(dim=-1)
    torch.testing.assert_close(found[TOKEN_PRODUCT][1, head, pair], norms.sum().double(), rtol=1e-4, atol=0)


def test_the_graph_of_a_batch_ends_with_its_backward(model: Any, geometry: Geometry) -> None:
    """A hook that holds the activation it hangs on is a cycle that no collector finds: every batch would stay."""
    seen: list[weakref.ref[Tensor]] = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _module, inputs: seen.append(weakref.ref(inputs[0]))
    )
    with collect_statistics(model, geometry, TAYLOR):
        model(tokens(2), labels=tokens(2)).loss.backward()
    handle.remove()
    gc.collect()
    assert seen[0]() is None


def test_taylor_equals_numerical_gradients(model: Any, geometry: Geometry) -> None:
    """A gate on one unit of one layer, moved a little: the change of each sequence's own loss."""
    batch = tokens(4)
    model.double().requires_grad_(False)
    for weight in model.parameters():  # stock attention's softmax is float32: the gradients must stand out
        weight *= 8 if weight.dim() > 1 else 1
    with collect_statistics(model, geometry, TAYLOR) as collector:
        model(batch, labels=batch).loss.backward()
    found = collector.statistics(24)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    group, pair, dim, channel = 1, 3, 5, 17
    query_dims = [head * 16 + offset for head in (2, 3) for offset in (pair, pair + 8)]
    value_dims = [head * 16 + dim for head in (2, 3)]
    for score, weight, at in (
        (found[TAYLOR_PAIRS][1, group, pair], attention.q_proj.weight, (query_dims,)),
        (found[TAYLOR_VALUES][1, group, dim], attention.o_proj.weight, (slice(None), value_dims)),
        (found[TAYLOR_CHANNELS][1, channel], mlp.down_proj.weight, (slice(None), [channel])),
    ):
        original = weight[at].clone()
        losses = []
        for step in (0.01, -0.01):
            weight[at] = original * (1 + step)  # scaling a unit's weights is scaling the unit
            losses.append([float(model(row[None], labels=row[None]).loss) for row in batch])
        weight[at] = original
        numerical = sum(abs(up - down) / 0.02 for up, down in zip(*losses, strict=True))
        torch.testing.assert_close(float(score), numerical, rtol=1e-2, atol=0)


def test_infinite_activations_name_their_layer(model: Any, geometry: Geometry) -> None:
    with torch.no_grad(), collect_statistics(model, geometry) as collector:
        model(tokens(1))
        assert collector.statistics(24).broken_layer(SQUARES) is None
        model.model.layers[1].mlp.up_proj.weight[7] = torch.nan
        model(tokens(1))
    assert collector.statistics(24).broken_layer(SQUARES) == (1, INTERMEDIATE)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize(
    ("norm", "names"), [("input_layernorm", {"query", "key"}), ("post_attention_layernorm", {"intermediate"})]
)
@pytest.mark.parametrize("extra", [(), TAYLOR, (TOKEN_PRODUCT, LOGIT_VARIANCE)])
def test_an_overflow_names_the_layer_where_it_begins(
    layer: int, norm: str, names: set[str], extra: tuple[Statistic, ...]
) -> None:
    """Weights are finite; all later layers, and all gradients, are broken too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=80,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    getattr(model.model.layers[layer], norm).weight.fill_(3e38)
    batch = tokens(1)
    with collect_statistics(model, read_geometry(config.to_dict()), (*SQUARES, *extra)) as collector:
        output = model(batch, labels=batch)
        if extra == TAYLOR:
            output.loss.backward()
    statistics = collector.statistics(24)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not statistics[INTERMEDIATE][3].isfinite().any() and not statistics[QUERY][3].isfinite().any()
    if extra == TAYLOR:
        assert not statistics[TAYLOR_PAIRS][0].isfinite().all()
    broken = statistics.broken_layer((*SQUARES, *extra))
    assert broken is not None and broken[0] == layer and broken[1].name in names


def test_broken_gradients_behind_sound_activations_name_the_layer_where_the_backward_meets_them(
    model: LlamaForCausalLM, geometry: Geometry
) -> None:
    statistics = ActivationStatistics.zeros(geometry, (*SQUARES, *TAYLOR))
    for statistic in (TAYLOR_PAIRS, TAYLOR_CHANNELS):
        statistics[statistic].fill_(torch.nan)
    assert statistics.broken_layer((*SQUARES, *TAYLOR)) == (geometry.num_layers - 1, TAYLOR_CHANNELS)


def test_hooks_go_away_even_after_an_error(model: LlamaForCausalLM, geometry: Geometry) -> None:
    assert count_hooks(model) == 0
    with pytest.raises(RuntimeError), collect_statistics(model, geometry):
        assert count_hooks(model) == 4 * geometry.num_layers
        raise RuntimeError
    assert count_hooks(model) == 0
