"""Every family against its stock class: a sliced model computes what its parent computes with the cut units zeroed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.support.commands import REPOSITORY
from tests.support.exported import masked_parent, random_selection, slice_folder
from tests.support.tiny_families import FAMILIES, STOCK_CLASSES, write_family_model
from transact.config.pruning import MethodConfig
from transact.engine.model_folder import layer_groups
from transact.export.folder import write_export
from transact.files import read_json
from transact.models.families import architectures_of, family_of
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.llama import check_supported, layer_of, layer_weights, replace_projections
from transact.models.model_files import check_shards
from transact.pruning.pair_scores import LOGIT_VARIANCE, TOKEN_PRODUCT
from transact.pruning.refit import LayerGram, Ridge
from transact.pruning.slicing import cut_layer
from transact.pruning.statistics import NORM_SHARES, QUERY, SQUARES, ActivationStatistics
from transact.stages.preflight import check_method

TOLERANCE = 1e-4


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 512, (2, 64), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(left: Any, right: Any) -> float:
    """Largest difference of two logits, relative to the largest logit where that is above 1."""
    expected = right(tokens()).logits
    return float((left(tokens()).logits - expected).abs().max() / expected.abs().max().clamp_min(1))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_and_exported_equals_masked_parent(tmp_path: Path, family: str, tied: bool) -> None:
    parent = write_family_model(tmp_path / "parent", family, tie_word_embeddings=tied)
    check_supported(read_json(parent / "config.json"))
    check_shards(parent, geometry_of(parent))
    selection = random_selection(parent, head_dim=10, intermediate_size=96)
    sliced = slice_folder(parent, tmp_path / "sliced", selection)
    (tmp_path / "export").mkdir()
    write_export(sliced, tmp_path / "export", "float32", "# a model\n")
    check_shards(tmp_path / "export", selection.target)
    exported, dense = load(tmp_path / "export"), load(parent)
    assert type(exported).__name__ == f"{STOCK_CLASSES[family]}ForCausalLM"
    assert exported.num_parameters() == selection.target.parameters()
    assert dense.num_parameters() == selection.source.parameters()
    assert difference(exported, masked_parent(parent, selection)) < TOLERANCE
    assert difference(exported, dense) > 0.1  # the mask matters


@pytest.mark.parametrize("family", FAMILIES)
def test_two_rounds_equal_one(tmp_path: Path, family: str) -> None:
    """A folder that was sliced once is a parent like any other."""
    parent = write_family_model(tmp_path / "parent", family)
    first = random_selection(parent, head_dim=12, intermediate_size=120)
    once = slice_folder(parent, tmp_path / "once", first)
    second = random_selection(once, head_dim=6, intermediate_size=80)
    twice = slice_folder(once, tmp_path / "twice", second)
    assert difference(load(twice), masked_parent(once, second)) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_whole_heads_equal_masked_parent(tmp_path: Path, family: str) -> None:
    parent = write_family_model(tmp_path / "parent", family)
    source = geometry_of(parent)
    selection = random_selection(parent, head_dim=16, intermediate_size=160)
    selection = replace(
        selection,
        target=replace(source, num_attention_heads=2, num_key_value_heads=1),
        query_heads=((2, 3), (0, 1)),
        key_value_heads=((1,), (0,)),
        query_key_dims=tuple(layer[:1] for layer in selection.query_key_dims),
        value_dims=tuple(layer[:1] for layer in selection.value_dims),
    )
    sliced = load(slice_folder(parent, tmp_path / "sliced", selection))
    dense = load(parent)
    with torch.no_grad():
        for block, gone in zip(dense.model.layers, (slice(0, 32), slice(32, 64)), strict=True):
            block.self_attn.o_proj.weight[:, gone] = 0
    assert difference(sliced, dense) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_change_of_value_basis_takes_the_bias_along(tmp_path: Path, family: str) -> None:
    """The SVD basis of nearly all dims with a refit: nearly nothing is lost, and without the bias much would be."""
    parent = write_family_model(tmp_path / "parent", family)
    model, geometry = load(parent), geometry_of(parent)
    with torch.no_grad(), collect_grams(model, geometry, range(geometry.num_layers)) as collector:
        model(tokens())
    selection = random_selection(parent, head_dim=14, intermediate_size=160, value_basis="svd")
    stored = load_file(parent / "model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for names in layer_groups(stored):
        layer, part = layer_of(names[0]), {name: stored[name] for name in names}
        weights = layer_weights(part)
        if weights is not None and layer is not None:
            gram: LayerGram = collector.take_gram(layer)
            part = replace_projections(part, cut_layer(weights, selection, layer, gram, ridge=Ridge(share=1e-6)))
        tensors |= part
    sliced = slice_folder(parent, tmp_path / "sliced", replace(selection, value_basis="dims"))
    save_file(tensors, sliced / "model.safetensors", metadata={"format": "pt"})
    refitted = difference(load(sliced), model)
    for name in tensors:
        if name.endswith("v_proj.bias"):
            tensors[name].zero_()
    save_file(tensors, sliced / "model.safetensors", metadata={"format": "pt"})
    assert (difference(load(sliced), model) > 1.5 * refitted) == (family == "qwen2")


def collect(parent: Path) -> ActivationStatistics:
    model = load(parent)
    statistics = (*SQUARES, *NORM_SHARES, LOGIT_VARIANCE, TOKEN_PRODUCT)
    with torch.no_grad(), collect_statistics(model, geometry_of(parent), statistics) as collector:
        model(tokens())
    return collector.statistics(tokens().numel())


def test_statistics_of_normalised_queries(tmp_path: Path) -> None:
    """They are those of what is rotated, after the norm; shares are those of what enters it."""
    parent = write_family_model(tmp_path / "parent", "qwen3")
    statistics, geometry = collect(parent), geometry_of(parent)
    model = load(parent)
    with torch.no_grad():
        hidden = model.model(tokens(), output_hidden_states=True).hidden_states[1]
        block = model.model.layers[1]
        projected = block.self_attn.q_proj(block.input_layernorm(hidden)).view(-1, geometry.num_attention_heads, 2, 8)
        square = projected.square().sum(dim=(2, 3), keepdim=True)
        gain = block.self_attn.q_norm.weight.view(2, 8)
        normalised = projected * (16 / square).sqrt() * gain
    torch.testing.assert_close(statistics[QUERY][1].float(), normalised.square().sum(dim=(0, 2)), rtol=1e-4, atol=1e-4)
    shares = statistics.norm_shares(geometry)
    assert shares is not None
    expected = (projected.square().sum(dim=2) / square.squeeze(-1)).mean(dim=(0, 1))
    torch.testing.assert_close(shares[0][1].float(), expected, rtol=1e-4, atol=1e-5)
    assert shares[1].sum(dim=-1).tolist() == pytest.approx([1.0, 1.0])


def test_the_gain_of_a_norm_brings_logits_nearer_to_the_dense_normaliser(tmp_path: Path) -> None:
    """The dense parent divides by the size of all dims: its kept part is the aim that no norm over fewer dims meets."""
    parent = write_family_model(tmp_path / "parent", "qwen3")
    shares = collect(parent).norm_shares(geometry_of(parent))
    plain = random_selection(parent, head_dim=8, intermediate_size=160)
    gained = random_selection(parent, head_dim=8, intermediate_size=160, norm_shares=shares)
    values = {"value_dims": plain.value_dims}
    assert gained.query_norm_gains is not None and max(gained.query_norm_gains) < 1
    aim = masked_parent(parent, plain)
    dense = load(parent)
    with torch.no_grad():
        cut = sorted(set(range(16)) - set(plain.query_key_dims[0][0]))
        for block, whole in zip(aim.model.layers, dense.model.layers, strict=True):
            for name in ("q", "k"):
                getattr(block.self_attn, f"{name}_proj").load_state_dict(
                    getattr(whole.self_attn, f"{name}_proj").state_dict()
                )
                getattr(block.self_attn, f"{name}_norm").weight[cut] = 0
    without = difference(load(slice_folder(parent, tmp_path / "without", plain)), aim)
    with_gain = difference(load(slice_folder(parent, tmp_path / "with", replace(gained, **values))), aim)
    assert with_gain < 0.8 * without


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        ({"pair_scope": "layer"}, "qwen2", "pair_scope='layer' is not allowed for model_type qwen2"),
        ({"pair_gains": "attention"}, "qwen3", "pair_gains='attention' is not allowed for model_type qwen3"),
        (
            {"attention": "shared_dims", "values": "norm"},
            "qwen3",
            "attention='shared_dims' is not allowed for model_type qwen3",
        ),
    ],
)
def test_a_method_that_a_family_cannot_take_is_refused(method: dict[str, Any], family: str, message: str) -> None:
    check_method(MethodConfig(**method), {"model_type": "llama"})
    with pytest.raises(ValueError, match=message):
        check_method(MethodConfig(**method), {"model_type": family})


def test_a_factor_for_each_rotary_pair_is_no_parent_of_shared_dims() -> None:
    """The pairs that are left would be rotated at frequencies of their own anew, and the factors be too many."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "attention_factor": 1.0}
    config = {"model_type": "llama", "max_position_embeddings": 64, "rope_parameters": rope}
    check_method(MethodConfig(), config)
    with pytest.raises(ValueError, match="attention='shared_dims' is not allowed with rope_type longrope"):
        check_method(MethodConfig(attention="shared_dims", values="norm"), config)


WINDOWS: dict[str, tuple[dict[str, Any], int | None]] = {
    "mistral, not said": ({"model_type": "mistral"}, 4096),
    "mistral, none": ({"model_type": "mistral", "sliding_window": None}, None),
    "mistral": ({"model_type": "mistral", "sliding_window": 24}, 24),
    "qwen2, not said": ({"model_type": "qwen2"}, None),
    "qwen2, switched on": ({"model_type": "qwen2", "use_sliding_window": True}, 4096),
    "qwen3": ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 24}, 24),
    "llama": ({"model_type": "llama", "sliding_window": 24}, None),
}


@pytest.mark.parametrize(("config", "window"), WINDOWS.values(), ids=WINDOWS)
def test_windows_are_those_of_the_stock_classes(config: dict[str, Any], window: int | None) -> None:
    """Oracle: transformers' own configuration of the same dictionary."""
    stock = CONFIG_MAPPING[config["model_type"]](
        **{name: value for name, value in config.items() if name != "model_type"}
    )
    in_use = getattr(stock, "use_sliding_window", True)
    assert (getattr(stock, "sliding_window", None) if in_use and config["model_type"] != "llama" else None) == window
    assert family_of(config).window(config) == window


def test_a_window_survives_the_cut_and_the_export(tmp_path: Path) -> None:
    """Sequences of 64 tokens and a window of 24: the masked parent, whose stock class has it, is the oracle."""
    parent = write_family_model(tmp_path / "parent", "mistral", sliding_window=24)
    selection = random_selection(parent, head_dim=10, intermediate_size=96)
    sliced = slice_folder(parent, tmp_path / "sliced", selection)
    (tmp_path / "export").mkdir()
    write_export(sliced, tmp_path / "export", "float32", "# a model\n")
    masked = masked_parent(parent, selection)
    assert difference(load(tmp_path / "export"), masked) < TOLERANCE
    wide = load(tmp_path / "export")
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = None
    wide.config.sliding_window = None
    assert difference(wide, masked) > 100 * TOLERANCE  # so the window does count here


def test_a_window_needs_a_stock_result() -> None:
    method = MethodConfig(pair_scope="layer")
    with pytest.raises(ValueError, match="not allowed for a model with a sliding window"):
        check_method(method, {"model_type": "mistral"})
    check_method(method, {"model_type": "mistral", "sliding_window": None})


def test_layers_differ_only_where_the_heads_divide_the_hidden_size() -> None:
    """As those of a cut of whole heads may not, which is a Mistral for that reason."""
    config = {"model_type": "mistral", "sliding_window": None, "hidden_size": 64, "num_attention_heads": 3}
    with pytest.raises(
        ValueError, match=r"prune\.shapes='layers' is not allowed for a model whose 3 heads do not divide"
    ):
        check_method(MethodConfig(), config, "layers")
    check_method(MethodConfig(), config, "uniform")
    with pytest.raises(ValueError, match=r"prune\.shapes='layers' is not allowed for model_type qwen3"):
        check_method(MethodConfig(), {"model_type": "qwen3"}, "layers")


def test_vllm_is_told_of_its_own_class_where_it_has_one_for_the_layers() -> None:
    """It gives all layers the query heads of the whole model, and one set of rotary pairs."""
    heads = {"model_type": "llama", "num_attention_heads": 4}
    whole, cut = ({"0": heads, "1": heads | {"num_attention_heads": count}} for count in (4, 2))
    layerwise = ["LayerwiseLlamaForCausalLM", "DeciLMForCausalLM"]
    assert architectures_of(heads | {"per_layer_config": whole}) == layerwise
    assert architectures_of(heads | {"per_layer_config": cut}) == layerwise[:1]
    assert architectures_of(heads | {"per_layer_config": {"0": cut["1"], "1": cut["1"]}}) == layerwise[:1]
    rotating = heads | {"per_layer_config": whole, "rotary_inverse_frequencies": [[[1.0]], [[0.5]]]}
    assert architectures_of(rotating) == ["OwnRotationForCausalLM"]
    assert architectures_of(heads) == ["LlamaForCausalLM"]


def test_the_code_that_goes_along_is_short() -> None:
    """A reader who is asked to trust it reads it in a minute."""
    for name in ("layerwise_llama.py", "own_rotation_llama.py"):
        lines = (REPOSITORY / "transact" / "models" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60, name
