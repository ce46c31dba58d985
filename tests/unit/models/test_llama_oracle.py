"""The oracle: a sliced model computes what its parent computes with the cut units set to zero.

The sliced model takes the road of a user: config.json and safetensors in a folder, loaded with
stock ``AutoModelForCausalLM``.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.support.exported import zero_cut_units
from transact.engine.model_folder import add_code, layer_groups
from transact.geometry import Geometry, Widths
from transact.models.llama import is_stock, read_geometry, slice_tensors, sliced_config
from transact.models.stock import load_model
from transact.pruning.criteria import Scores
from transact.pruning.selection import Chosen, Goal, Rules, Selection, make_selection

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make_parent(
    folder: Path,
    key_value_heads: int = 2,
    tied: bool = False,
    scaling: dict[str, Any] | None = None,
    heads: int = 4,
) -> tuple[dict[str, Any], PreTrainedModel]:
    """A random model, saved by transformers, and its config.json."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=48,
        vocab_size=80,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters=(scaling or {"rope_type": "default"}) | {"rope_theta": 500.0},
        initializer_range=0.2,  # large enough for attention to look somewhere
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load(folder)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_selection(source: Geometry, head_dim: int, intermediate_size: int, **rules: Any) -> Selection:
    layers, heads = source.num_layers, source.num_key_value_heads
    scores = Scores(
        pairs=torch.rand(layers, heads, source.head_dim // 2),
        values=torch.rand(layers, heads, source.head_dim),
        channels=torch.rand(layers, source.intermediate_size),
    )
    target = replace(source, head_dim=head_dim, intermediate_size=intermediate_size)
    return make_selection(scores, source, Goal(target=target, parent=source), Rules(**rules))


def slice_to(
    folder: Path, model: PreTrainedModel, config: dict[str, Any], selection: Selection
) -> tuple[dict[str, Any], PreTrainedModel]:
    stored = dict(model.state_dict())
    if selection.source.tied_embeddings:
        del stored["lm_head.weight"]
    tensors = {
        name: tensor.clone()
        for names in layer_groups(stored)
        for name, tensor in slice_tensors({name: stored[name] for name in names}, selection).items()
    }
    return write(folder, tensors, sliced_config(config, selection))


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Any], PreTrainedModel]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    add_code(config, folder)
    return config, (load if is_stock(config) else load_model)(folder)


def masked(parent: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """A copy of the parent with every cut unit zeroed."""
    return zero_cut_units(deepcopy(parent), selection)


def compose(first: Selection, second: Selection) -> Selection:
    """Both rounds as one selection on the parent."""
    return replace(
        second,
        source=first.source,
        query_key_dims=tuple(
            tuple(tuple(earlier[dim] for dim in later) for earlier, later in zip(heads, later_heads, strict=True))
            for heads, later_heads in zip(first.query_key_dims, second.query_key_dims, strict=True)
        ),
        value_dims=tuple(
            tuple(tuple(earlier[dim] for dim in later) for earlier, later in zip(heads, later_heads, strict=True))
            for heads, later_heads in zip(first.value_dims, second.value_dims, strict=True)
        ),
        channels=tuple(
            tuple(earlier[channel] for channel in later)
            for earlier, later in zip(first.channels, second.channels, strict=True)
        ),
    )


@torch.no_grad()
def largest_difference(left: PreTrainedModel, right: PreTrainedModel) -> float:
    tokens = torch.randint(0, 80, (2, 64), generator=torch.Generator().manual_seed(1))
    return float((left(tokens).logits - right(tokens).logits).abs().max())


@pytest.mark.parametrize("scaling", [None, LLAMA3], ids=["default", "llama3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("key_value_heads", [4, 2], ids=["multi_head", "grouped_query"])
def test_sliced_equals_masked_parent(
    tmp_path: Path, key_value_heads: int, tied: bool, scaling: dict[str, Any] | None
) -> None:
    config, parent = make_parent(tmp_path / "parent", key_value_heads, tied, scaling)
    selection = random_selection(read_geometry(config), head_dim=10, intermediate_size=20)
    sliced_configuration, sliced = slice_to(tmp_path / "sliced", parent, config, selection)

    assert read_geometry(sliced_configuration) == selection.target
    assert sliced.num_parameters() == selection.target.parameters()
    assert largest_difference(sliced, masked(parent, selection)) < TOLERANCE
    # The mask matters: the dense parent says something else.
    assert largest_difference(sliced, parent) > 0.1


def test_two_rounds_equal_one_mask(tmp_path: Path) -> None:
    config, parent = make_parent(tmp_path / "parent", scaling=LLAMA3)
    first = random_selection(read_geometry(config), head_dim=12, intermediate_size=30)
    once_config, once = slice_to(tmp_path / "once", parent, config, first)
    second = random_selection(first.target, head_dim=6, intermediate_size=11)
    _, twice = slice_to(tmp_path / "twice", once, once_config, second)
    assert largest_difference(twice, masked(parent, compose(first, second))) < TOLERANCE


def test_cached_generation_is_equal(tmp_path: Path) -> None:
    config, parent = make_parent(tmp_path / "parent")
    selection = random_selection(read_geometry(config), head_dim=8, intermediate_size=24)
    _, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    prompt = torch.tensor([[3, 14, 15, 9, 26]])
    settings = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    expected = masked(parent, selection).generate(prompt, **settings)
    assert sliced.generate(prompt, **settings).tolist() == expected.tolist()
    # Without a cache, position by position: the same tokens again.
    uncached = sliced.generate(prompt, **settings | {"use_cache": False})
    assert uncached.tolist() == expected.tolist()


def test_control_frequencies_of_the_smaller_head_are_wrong(tmp_path: Path) -> None:
    """The oracle can fail: with the paper's re-created rotary embedding it does, clearly."""
    config, parent = make_parent(tmp_path / "parent")
    selection = random_selection(read_geometry(config), head_dim=10, intermediate_size=20)
    good_config, good = slice_to(tmp_path / "good", parent, config, selection)
    naive = config | {key: good_config[key] for key in ("head_dim", "intermediate_size")}
    _, wrong = write(tmp_path / "wrong", good.state_dict(), naive)
    assert largest_difference(wrong, masked(parent, selection)) > 100 * TOLERANCE


def test_control_unscaled_queries_are_wrong(tmp_path: Path) -> None:
    config, parent = make_parent(tmp_path / "parent")
    selection = random_selection(read_geometry(config), head_dim=10, intermediate_size=20)
    _, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    with torch.no_grad():
        for block in sliced.model.layers:
            block.self_attn.q_proj.weight.mul_((16 / 10) ** 0.5)
    assert largest_difference(sliced, masked(parent, selection)) > 100 * TOLERANCE


@pytest.mark.parametrize("scope", ["layer", "head"])
@pytest.mark.parametrize("key_value_heads", [4, 2], ids=["multi_head", "grouped_query"])
def test_own_frequencies_equal_masked_parent(tmp_path: Path, key_value_heads: int, scope: str) -> None:
    """What no stock class expresses: every layer or head keeps pairs of its own, in two rounds."""
    config, parent = make_parent(tmp_path / "parent", key_value_heads, scaling=LLAMA3)
    first = random_selection(read_geometry(config), head_dim=12, intermediate_size=30, pair_scope=scope)
    once_config, once = slice_to(tmp_path / "once", parent, config, first)
    second = random_selection(first.target, head_dim=6, intermediate_size=11, pair_scope=scope)
    twice_config, twice = slice_to(tmp_path / "twice", once, once_config, second)
    assert largest_difference(twice, masked(parent, compose(first, second))) < TOLERANCE
    assert not is_stock(once_config) and not is_stock(twice_config)
    assert_generates_alike(twice)
    with pytest.raises(ValueError, match="trust_remote_code"):  # stock code refuses it instead of being wrong
        load(tmp_path / "twice")


@pytest.mark.parametrize("scope", ["model", "layer", "head"])
@pytest.mark.parametrize("head_dims", [(12, 12), (12, 8), (16, 8)], ids=["dims_then_heads", "dims_and_both", "both"])
def test_heads_that_go_beside_dims_equal_masked_parent(tmp_path: Path, head_dims: tuple[int, int], scope: str) -> None:
    """In two rounds, of which the second takes every layer another key-value head, with the queries that share it."""
    config, model = make_parent(tmp_path / "parent", key_value_heads=2)
    first, last = head_dims
    if first < 16:
        selection = random_selection(read_geometry(config), head_dim=first, intermediate_size=30, pair_scope=scope)
        config, model = slice_to(tmp_path / "once", model, config, selection)
    source = read_geometry(config)
    target = replace(source, num_key_value_heads=1, num_attention_heads=2, head_dim=last, intermediate_size=20)
    scores = Scores(
        pairs=torch.rand(2, 2, first // 2),
        values=torch.rand(2, 2, first),
        channels=torch.rand(2, source.intermediate_size),
    )
    selection = make_selection(
        scores,
        source,
        Goal(target=target, parent=source),
        Rules(pair_scope=scope),
        chosen=Chosen(head_orders=[[0, 1], [1, 0]]),
    )
    assert selection.key_value_heads == ((1,), (0,)) and selection.query_heads == ((2, 3), (0, 1))
    cut_config, sliced = slice_to(tmp_path / "sliced", model, config, selection)
    assert read_geometry(cut_config) == target and is_stock(cut_config) == (scope == "model")
    assert largest_difference(sliced, masked(model, selection)) < TOLERANCE
    assert_generates_alike(sliced)


def assert_generates_alike(model: PreTrainedModel) -> None:
    """With a cache and without, the same tokens: each position is rotated by its own number."""
    prompt = torch.arange(9)[None] * 3 % model.config.vocab_size
    cached, plain = (
        model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("head_dim", [16, 12], ids=["whole_heads", "cut_heads"])
def test_layers_with_widths_of_their_own_equal_masked_parent(tmp_path: Path, head_dim: int) -> None:
    """Of the first layer all heads and few channels stay, of the second one group of heads and most channels."""
    config, parent = make_parent(tmp_path / "parent", key_value_heads=2)
    source = read_geometry(config)
    widths = [Widths(num_key_value_heads=2, intermediate_size=9), Widths(num_key_value_heads=1, intermediate_size=40)]
    target = replace(source, head_dim=head_dim).with_layers(widths)
    scores = Scores(
        pairs=torch.rand(2, 2, 8), values=torch.rand(2, 2, 16), channels=torch.rand(2, 48), heads=torch.rand(2, 4)
    )
    selection = make_selection(scores, source, Goal(target=target, parent=source), Rules())
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection
    cut_config, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    assert read_geometry(cut_config) == target
    assert sum(parameter.numel() for parameter in sliced.parameters()) == target.parameters()
    assert largest_difference(sliced, masked(parent, selection)) < TOLERANCE
    assert_generates_alike(sliced)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path / "sliced")


def test_every_layer_may_lose_heads_that_no_longer_divide_the_hidden_size(tmp_path: Path) -> None:
    """Seven and six of eight heads on 64 dims, which LlamaConfig would not take for the whole model."""
    config, parent = make_parent(tmp_path / "parent", key_value_heads=8, heads=8)
    source = read_geometry(config)
    widths = [Widths(num_key_value_heads=heads, intermediate_size=30) for heads in (7, 6)]
    scores = Scores(
        pairs=torch.rand(2, 8, 4), values=torch.rand(2, 8, 8), channels=torch.rand(2, 48), heads=torch.rand(2, 8)
    )
    goal = Goal(target=source.with_layers(widths), parent=source)
    selection = make_selection(scores, source, goal, Rules())
    cut_config, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    assert read_geometry(cut_config) == goal.target
    assert largest_difference(sliced, masked(parent, selection)) < TOLERANCE
    assert_generates_alike(sliced)


def test_until_transformers_builds_llama_layer_by_layer_it_refuses_layers_that_differ(tmp_path: Path) -> None:
    """On the day that this fails, folders with widths of their own load without code, and documents may say so."""
    config, parent = make_parent(tmp_path / "parent")
    source = read_geometry(config)
    widths = [Widths(num_key_value_heads=source.num_key_value_heads, intermediate_size=size) for size in (9, 40)]
    scores = Scores(pairs=torch.rand(2, 4, 8), values=torch.rand(2, 4, 16), channels=torch.rand(2, 48))
    goal = Goal(target=source.with_layers(widths), parent=source)
    selection = make_selection(scores, source, goal, Rules())
    _, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    assert largest_difference(sliced, masked(parent, selection)) < TOLERANCE
    with pytest.raises(RuntimeError, match="'intermediate_size' is a per-layer attribute"):
        load(tmp_path / "sliced")


def test_whole_heads_equal_masked_parent(tmp_path: Path) -> None:
    """Three of four heads on 64 dims: stock code loads it as a Mistral."""
    config, parent = make_parent(tmp_path / "parent", key_value_heads=4)
    source = read_geometry(config)
    target = replace(source, num_attention_heads=3, num_key_value_heads=3)
    scores = Scores(pairs=torch.rand(2, 4, 8), values=torch.rand(2, 4, 16), channels=torch.rand(2, 48))
    selection = make_selection(
        replace(scores, heads=torch.rand(2, 4)), source, Goal(target=target, parent=source), Rules(unit="heads")
    )
    _, sliced = slice_to(tmp_path / "sliced", parent, config, selection)
    assert sliced.config.model_type == "mistral"
    with torch.no_grad():
        for layer, block in enumerate(parent.model.layers):
            (gone,) = set(range(4)) - set(selection.query_heads[layer])
            block.self_attn.o_proj.weight[:, gone * 16 : (gone + 1) * 16] = 0
    assert largest_difference(sliced, parent) < TOLERANCE
