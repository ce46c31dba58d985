"""Sequential calibration against least squares on activations that stock transformers computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.least_squares import Rows, cross_validated, refitted
from tests.support.selections import hand_selection
from tests.support.tiny import TINY
from transact.config.pruning import MethodConfig
from transact.models.llama import layer_of, read_geometry
from transact.pruning.refit import LayerGram, Ridge
from transact.stages.in_memory import prune_model
from transact.stages.sequential import EMBEDDING, Embedded, Streams, token_scale

BATCHES = torch.randint(0, 512, (48, 32), generator=torch.Generator().manual_seed(0)).split(12)


def make_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(TINY | {"initializer_range": 0.15, "num_hidden_layers": 3}))).eval()


RIDGE = Ridge(share=0.02, unit="median")


def cut_by(model: Any, refit: str, batches: Sequence[torch.Tensor] = BATCHES, **dimensions: int) -> Any:
    method = MethodConfig(refit=refit, pair_gains="none", values="norm", ridge=RIDGE.share, ridge_unit=RIDGE.unit)
    return prune_model(model, batches, method=method, target="transformers", **dimensions).eval()


@contextmanager
def inputs_of(modules: dict[str, Any]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What each module reads in the forwards of the block, by its name, one float64 row a token."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def catch(name: str) -> Any:
        return lambda _module, inputs: seen[name].append(inputs[0].flatten(0, -2).double())

    handles = [module.register_forward_pre_hook(catch(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def traces(model: Any, batches: Sequence[torch.Tensor] = BATCHES) -> dict[str, torch.Tensor]:
    """Per layer: the residual stream before it and between its modules, what o_proj and down_proj read; the end."""
    modules = {"end": model.model.norm}
    for number, block in enumerate(model.model.layers):
        modules |= {
            f"{number}.before": block.input_layernorm,
            f"{number}.o_proj": block.self_attn.o_proj,
            f"{number}.between": block.post_attention_layernorm,
            f"{number}.down_proj": block.mlp.down_proj,
        }
    with inputs_of(modules) as seen:
        for batch in batches:
            model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def halves(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], name: str, start: torch.Tensor
) -> tuple[Rows, Rows]:
    """Inputs and targets of a projection in even and odd sequences.

    The target leads from the cut residual stream before the module to the dense one behind it. Both are relative to the
    root mean square of the latter, or of the cut stream with the module's output by weights `start`, if that is larger.
    """
    layer, projection = name.split(".")
    after = f"{int(layer) + 1}.before" if f"{int(layer) + 1}.before" in found else "end"
    before, end = ("before", f"{layer}.between") if projection == "o_proj" else ("between", after)
    before = found[f"{layer}.{before}"]
    sizes = [each.square().mean(dim=1, keepdim=True).sqrt() for each in (wanted[end], before + found[name] @ start.T)]
    scale = 1 / torch.maximum(*sizes)
    rows = found[name] * scale, (wanted[end] - before) * scale
    even, odd = (tuple(each.unflatten(0, (48, 32))[half::2].flatten(0, 1) for each in rows) for half in range(2))
    return (even[0], even[1]), (odd[0], odd[1])


@torch.no_grad()
def grams_of(model: Any, batches: Sequence[torch.Tensor]) -> list[LayerGram]:
    """Of every layer, from the rows that its output projections read."""
    seen = traces(model, batches)
    sums = {name: rows.T @ rows for name, rows in seen.items()}
    return [
        LayerGram(attention_output=sums[f"{layer}.o_proj"], intermediate=sums[f"{layer}.down_proj"])
        for layer in range(len(model.model.layers))
    ]


def weight_of(model: Any, name: str, kind: str) -> torch.Tensor:
    """The weight, float64, of a projection in the layer that `name` begins with."""
    return model.get_submodule(f"model.layers.{name.split('.')[0]}.{kind}").weight.detach().double()


def kept_inputs(model: Any, cut: Any, name: str) -> list[int]:
    """Inputs that stay, found by the rows that make them, which no refit changes."""
    if name.endswith("down_proj"):
        whole, part = (weight_of(each, name, "mlp.gate_proj") for each in (model, cut))
        return [int((whole == row).all(dim=1).nonzero()) for row in part]
    whole, part = (weight_of(each, name, "self_attn.v_proj") for each in (model, cut))
    rows = [int((whole == row).all(dim=1).nonzero()) for row in part]
    per_head = len(rows) // TINY["num_key_value_heads"]
    group = TINY["num_attention_heads"] // TINY["num_key_value_heads"]
    heads = range(TINY["num_attention_heads"])
    first = [rows[per_head * (head // group) :][:per_head] for head in heads]
    return [row + TINY["head_dim"] * (head - head // group) for head in heads for row in first[head]]


NAMES = [f"{layer}.{kind}" for layer in range(3) for kind in ("o_proj", "down_proj")]


def test_every_projection_is_refitted_and_then_corrected_on_what_the_cut_layers_give() -> None:
    """The finished model's own activations are those that each fit saw: all before it was finished by then."""
    model = make_model()
    cut = cut_by(model, "sequential", head_dim=8, intermediate_size=80)
    found, wanted, num_corrected = traces(cut), traces(model), 0
    for name in NAMES:
        kind = f"self_attn.{name[2:]}" if name.endswith("o_proj") else f"mlp.{name[2:]}"
        start = refitted(weight_of(model, name, kind), wanted[name], kept_inputs(model, cut, name), RIDGE)
        expected = cross_validated(start, halves(found, wanted, name, start), RIDGE)
        largest = float(expected.abs().max())
        num_corrected += float((expected - start).abs().max()) > 0.01 * largest
        torch.testing.assert_close(weight_of(cut, name, kind), expected, rtol=1e-3, atol=1e-3 * largest)
    assert num_corrected >= 3  # and where no correction helps on the other half there is none


@pytest.mark.parametrize(
    ("batches", "most"), [(BATCHES, 0.95), ([BATCHES[0][:4]], 1.0)], ids=["1,536 tokens", "128 tokens"]
)
def test_it_makes_up_for_what_earlier_layers_have_lost(batches: Sequence[torch.Tensor], most: float) -> None:
    """On other text too the residual stream ends nearer to the dense one than where each layer is fitted for itself.

    Little text says little of what was lost: then corrections do no harm.
    """
    model = make_model()
    parallel, sequential = (
        cut_by(model, refit, batches, head_dim=8, intermediate_size=80) for refit in ("least_squares", "sequential")
    )
    other = torch.randint(0, 512, (48, 32), generator=torch.Generator().manual_seed(1)).split(12)
    end = traces(model, other)["end"]
    size = end.square().mean(dim=1, keepdim=True)
    alone, together = (((traces(each, other)["end"] - end).square() / size).mean() for each in (parallel, sequential))
    assert together < most * alone


def test_a_token_that_only_the_cut_model_takes_for_a_sink_weighs_no_more_than_another() -> None:
    """An error of a thousand times a token's dense stream is one of its own stream's size, as what reads it normalises.

    On SmolLM2-135M one such token of 65,536 turned the weights of a sink's channel around: perplexity 286, not 110.
    """
    small, huge = torch.tensor([[0.6, 0.8]]), torch.tensor([[3000.0, 4000.0]])
    for dense, cut in ((huge, small), (small, huge), (huge, huge)):
        torch.testing.assert_close(token_scale(dense, cut), torch.tensor([[1 / 12.5e6**0.5]]))
    torch.testing.assert_close(token_scale(small, small / 2), torch.tensor([[2**0.5]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("lengths", [(32,), (9, 1, 22)])
def test_where_nothing_is_cut_the_weights_come_back(lengths: tuple[int, ...]) -> None:
    """lengths: of the documents in each sequence, which the model is given one by one."""
    model = make_model()
    config = model.config.to_dict()
    source = read_geometry(config)
    everything = hand_selection(
        source,
        range(source.head_dim // 2),
        [[range(source.head_dim)] * source.num_key_value_heads] * source.num_layers,
        [range(source.intermediate_size)] * source.num_layers,
    )
    weights = model.state_dict()
    device = torch.device("cpu")
    documents = [part for row in torch.cat(BATCHES) for part in row.unsqueeze(0).split(lengths, dim=1)]
    grams = grams_of(model, documents)
    position_ids = torch.cat([torch.arange(length) for length in lengths]).expand(12, -1)
    embedded = [
        Embedded(12 * number, weights[EMBEDDING][batch], None if len(lengths) == 1 else position_ids)
        for number, batch in enumerate(BATCHES)
    ]
    streams = Streams(everything, embedded, device=device, ridge=RIDGE, num_turns=len(embedded))
    for layer in range(source.num_layers):
        tensors = {name: tensor for name, tensor in weights.items() if layer_of(name) == layer}
        for name, tensor in streams.cut_layer(
            layer, tensors, partial(grams.__getitem__, layer), config, config
        ).items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-5)
    end = traces(model, documents)["end"]
    for stream in (streams.dense, streams.cut):
        torch.testing.assert_close(torch.cat(stream).flatten(0, 1).double(), end, rtol=1e-4, atol=1e-4)
