"""Sequential calibration against least squares on activations that stock transformers computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.selections import hand_selection
from tests.support.tiny import TINY
from transact.config.pruning import MethodConfig
from transact.models.llama import layer_of, read_geometry
from transact.pruning.refit import Ridge, damping
from transact.stages.in_memory import prune_model
from transact.stages.sequential import EMBEDDING, Streams

BATCHES = torch.randint(0, 512, (48, 32), generator=torch.Generator().manual_seed(0)).split(12)


def make_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(TINY | {"initializer_range": 0.15, "num_hidden_layers": 3}))).eval()


def sequentially_cut(model: Any, ridge: float, **dimensions: int) -> Any:
    method = MethodConfig(refit="sequential", channels="norm", ridge=ridge)
    return prune_model(model, BATCHES, method=method, target="transformers", **dimensions).eval()


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
def traces(model: Any) -> dict[str, torch.Tensor]:
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
        for batch in BATCHES:
            model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def fitted(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], name: str) -> tuple[Any, Any]:
    """Inputs y and targets t of a projection: t leads from the cut residual stream to the dense one behind it."""
    layer, projection = name.split(".")
    after = f"{int(layer) + 1}.before" if f"{int(layer) + 1}.before" in found else "end"
    start, end = ("before", f"{layer}.between") if projection == "o_proj" else ("between", after)
    return found[name], wanted[end] - found[f"{layer}.{start}"]


def projection(model: Any, name: str) -> torch.Tensor:
    layer, kind = name.split(".")
    block = model.model.layers[int(layer)]
    return (block.self_attn.o_proj if kind == "o_proj" else block.mlp.down_proj).weight.detach().double()


NAMES = [f"{layer}.{kind}" for layer in range(3) for kind in ("o_proj", "down_proj")]


def test_every_projection_is_the_least_squares_to_the_dense_residual_stream() -> None:
    """Every kind of unit is cut, and the ridge is as good as none: plain lstsq on the activations themselves."""
    model = make_model()
    cut = sequentially_cut(model, 1e-9, head_dim=8, intermediate_size=80)
    found, wanted = traces(cut), traces(model)
    for name in NAMES:
        inputs, targets = fitted(found, wanted, name)
        expected = torch.linalg.lstsq(inputs, targets).solution.T
        torch.testing.assert_close(projection(cut, name), expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_the_ridge_pulls_towards_the_plain_cut() -> None:
    """As data: every kept channel once more, as a row of its own of size sqrt(damping), with the dense weights."""
    model = make_model()
    cut = sequentially_cut(model, 0.3, intermediate_size=80)
    found, wanted = traces(cut), traces(model)
    for name in NAMES:
        inputs, targets = fitted(found, wanted, name)
        dense = projection(model, name)
        if name.endswith("down_proj"):
            whole, part = (each.model.layers[int(name[0])].mlp.gate_proj.weight for each in (model, cut))
            dense = dense[:, [int((whole == row).all(dim=1).nonzero()) for row in part]]
        strength = damping(inputs.T @ inputs, Ridge(share=0.3)) ** 0.5
        rows = torch.cat([inputs, strength * torch.eye(inputs.shape[1], dtype=torch.float64)])
        expected = torch.linalg.lstsq(rows, torch.cat([targets, strength * dense.T])).solution.T
        torch.testing.assert_close(projection(cut, name), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_it_makes_up_for_what_earlier_layers_have_lost() -> None:
    """The residual stream ends nearer to the dense one than where every layer is fitted for itself."""
    model = make_model()
    parallel = prune_model(
        model,
        BATCHES,
        method=MethodConfig(channels="norm"),
        target="transformers",
        head_dim=8,
        intermediate_size=80,
    )
    sequential = sequentially_cut(model, 0.01, head_dim=8, intermediate_size=80)
    end = traces(model)["end"]
    alone, together = ((traces(each.eval())["end"] - end).square().mean() for each in (parallel, sequential))
    assert together < 0.9 * alone


def test_where_nothing_is_cut_the_weights_come_back() -> None:
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
    embedded = [weights[EMBEDDING][batch] for batch in BATCHES]
    streams = Streams(
        everything, embedded, device=torch.device("cpu"), ridge=Ridge(share=0.01), num_turns=len(embedded)
    )
    for layer in range(source.num_layers):
        tensors = {name: tensor for name, tensor in weights.items() if layer_of(name) == layer}
        for name, tensor in streams.cut_layer(layer, tensors, config, config).items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-5)
    end = traces(model)["end"]
    for stream in (streams.dense, streams.cut):
        torch.testing.assert_close(torch.cat(stream).flatten(0, 1).double(), end, rtol=1e-4, atol=1e-4)
