"""An exported folder without the job that leads to it, and what it must compute: made from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import train_tokenizer, write_model, write_text_files
from transact.config.pruning import MethodConfig
from transact.engine.model_folder import add_code, copy_companions, layer_groups
from transact.export.folder import write_export
from transact.files import read_json, write_json
from transact.geometry import Widths
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.llama import layer_of, read_geometry, slice_tensors, sliced_config
from transact.pruning.criteria import Criteria, Evidence, Scores
from transact.pruning.refit import Ridge
from transact.pruning.selection import Goal, Rules, Selection, make_selection


def random_selection(
    folder: Path,
    *,
    head_dim: int,
    intermediate_size: int,
    widths: Sequence[Widths] = (),
    norm_shares: tuple[torch.Tensor, torch.Tensor] | None = None,
    **rules: Any,
) -> Selection:
    """Random units of the model in a folder. widths: of every layer, where they differ."""
    source = read_geometry(read_json(folder / "config.json"))
    layers, heads = source.num_layers, source.num_key_value_heads
    generator = torch.Generator().manual_seed(5)
    scores = Scores(
        pairs=torch.rand(layers, heads, source.head_dim // 2, generator=generator),
        values=torch.rand(layers, heads, source.head_dim, generator=generator),
        channels=torch.rand(layers, source.intermediate_size, generator=generator),
        heads=torch.rand(layers, source.num_attention_heads, generator=generator),
    )
    target = replace(source, head_dim=head_dim, intermediate_size=intermediate_size)
    target = target.with_layers(widths) if widths else target
    return make_selection(scores, source, Goal(target=target, parent=source), Rules(**rules), norm_shares=norm_shares)


def slice_folder(source: Path, target: Path, selection: Selection) -> Path:
    """The plain cut of a folder with a single shard."""
    stored = load_file(source / "model.safetensors")
    target.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for names in layer_groups(stored):
        tensors |= slice_tensors({name: stored[name] for name in names}, selection)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    write_json(target / "config.json", sliced_config(read_json(source / "config.json"), selection))
    copy_companions(source, target)
    add_code(read_json(target / "config.json"), target)
    return target


def write_exported(folder: Path, cut: dict[str, Any], *, dtype: str = "float32", **changes: Any) -> Path:
    """A random parent with a tokenizer, cut (arguments of `random_selection`) and exported: `folder`/export."""
    text, _ = write_text_files(folder / "text")
    parent = write_model(folder / "parent", **changes)
    train_tokenizer(text).save_pretrained(parent)
    selection = random_selection(parent, intermediate_size=96, **cut)
    sliced = slice_folder(parent, folder / "sliced", selection)
    (folder / "export").mkdir()
    write_export(sliced, folder / "export", dtype, "# a model\n")
    return folder / "export"


@torch.no_grad()
def prune_folder(
    source: Path,
    target: Path,
    tokens: torch.Tensor,
    *,
    head_dim: int,
    intermediate_size: int,
    widths: Sequence[Widths] = (),
) -> Path:
    """The method's cut with refit, calibrated on `tokens` (sequences, length), of a folder with a single shard.

    widths: of every layer, where they differ.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    geometry = geometry_of(source)
    criteria = Criteria.of(MethodConfig(pair_score="logit_variance", values="svd", channels="norm"))
    with (
        collect_statistics(model, geometry, criteria.statistics(geometry)) as sums,
        collect_grams(model, geometry, range(geometry.num_layers)) as grams,
    ):
        model(tokens)
    evidence = Evidence(geometry=geometry, statistics=sums.statistics(tokens.numel()))
    smaller = replace(geometry, head_dim=head_dim, intermediate_size=intermediate_size)
    smaller = smaller.with_layers(widths) if widths else smaller
    goal = Goal(target=smaller, parent=geometry)
    selection = make_selection(criteria.score(evidence), geometry, goal, Rules(value_basis="svd"))
    stored = load_file(source / "model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for names in layer_groups(stored):
        layer, part = layer_of(names[0]), {name: stored[name] for name in names}
        gram = None if layer is None else grams.take_gram(layer)
        tensors |= slice_tensors(part, selection, gram, None if layer is None else Ridge(share=0.01))
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    write_json(target / "config.json", sliced_config(read_json(source / "config.json"), selection))
    copy_companions(source, target)
    add_code(read_json(target / "config.json"), target)
    return target


@torch.no_grad()
def masked_parent(folder: Path, selection: Selection) -> Any:
    """The parent in a folder with every cut unit zeroed: what its sliced model must compute."""
    from transformers import AutoModelForCausalLM

    return zero_cut_units(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), selection)


@torch.no_grad()
def zero_cut_units(model: Any, selection: Selection) -> Any:
    """The model itself, changed in place; written independently of the slicing code."""
    half, hidden = selection.source.head_dim // 2, selection.source.hidden_size
    group = selection.source.queries_per_key_value_head
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        for head in range(selection.source.num_key_value_heads):
            if head not in selection.key_value_heads[layer]:
                attention.o_proj.weight[:, head * group * 2 * half : (head + 1) * group * 2 * half] = 0
                continue
            place = selection.key_value_heads[layer].index(head)
            cut_pairs = sorted(set(range(half)) - set(selection.rotary_pairs(layer, place)))
            cut_dims = sorted(set(range(2 * half)) - set(selection.value_dims[layer][place]))
            for projection in (attention.q_proj, attention.k_proj):
                _zero(projection, (selection.source.num_key_value_heads, -1, 2, half), (head, ..., cut_pairs))
            _zero(attention.v_proj, (-1, 2 * half), (head, cut_dims))
            output = attention.o_proj.weight.view(hidden, -1, 2 * half)
            output[:, head * group : (head + 1) * group, cut_dims] = 0
        cut = sorted(set(range(selection.source.intermediate_size)) - set(selection.channels[layer]))
        mlp.gate_proj.weight[cut] = 0
        mlp.up_proj.weight[cut] = 0
        mlp.down_proj.weight[:, cut] = 0
    return model


def _zero(projection: Any, shape: tuple[int, ...], where: Any) -> None:
    """Zero outputs of a projection, arranged as `shape`: the rows of its weight, and its bias if there is one."""
    mask = torch.ones(len(projection.weight)).view(shape)
    mask[where] = 0
    projection.weight.mul_(mask.flatten().unsqueeze(1))
    if projection.bias is not None:
        projection.bias.mul_(mask.flatten())
