"""The export's logits by stock code, of the whole model or a layer at a time: the same, in the memory that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.allocations import allocated_peak
from tests.support.report_folders import LLAMA_7B
from tests.support.tiny import write_model
from tests.support.tiny_families import FAMILIES, write_family_model
from transact.engine.model_folder import add_code, stored_config
from transact.files import read_json, write_json
from transact.models.families import OWN_FREQUENCIES
from transact.models.folder import geometry_of
from transact.models.llama import layerwise_config
from transact.models.model_files import SINGLE_NAME
from transact.stages.export import TOLERANCE, logit_difference
from transact.stages.stock_logits import (
    layer_check_bytes,
    logits_by_layer,
    stock_logits,
    whole_check_bytes,
    whole_logits,
)

CPU = torch.device("cpu")


def some_tokens(folder: Path, count: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, geometry_of(folder).vocab_size, (2, count), generator=generator)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_at_a_time_equals_the_whole(tmp_path: Path, family: str, tied: bool) -> None:
    """transformers' own forward is the oracle."""
    folder = write_family_model(tmp_path, family, tie_word_embeddings=tied)
    tokens = some_tokens(folder)
    assert logit_difference(logits_by_layer(folder, tokens, CPU), whole_logits(folder, tokens, CPU)) < TOLERANCE / 100


def test_so_it_does_where_each_layer_has_frequencies_of_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    geometry = geometry_of(folder)
    frequencies = torch.rand(
        geometry.num_layers, geometry.num_key_value_heads, geometry.head_dim // 2, generator=torch.Generator()
    )
    config = read_json(folder / "config.json") | {OWN_FREQUENCIES: frequencies.tolist()}
    config = stored_config(layerwise_config(config, geometry), "float32")
    write_json(folder / "config.json", config)
    add_code(config, folder)
    tokens = some_tokens(folder)
    assert logit_difference(logits_by_layer(folder, tokens, CPU), whole_logits(folder, tokens, CPU)) < TOLERANCE / 100


def test_a_wrong_weight_anywhere_is_found(tmp_path: Path) -> None:
    """Every tensor of every layer in turn, a row of it a tenth larger or negated."""
    folder = write_family_model(tmp_path, "qwen3", tie_word_embeddings=False)
    tokens, whole = some_tokens(folder), load_file(folder / SINGLE_NAME)
    expected = whole_logits(folder, tokens, CPU)
    assert len(whole) > 20
    for name, weight in whole.items():
        # Of the embedding a word that occurs.
        rows = tokens[0, :1] if "embed" in name else torch.arange(max(1, len(weight) // 8))
        wrong = weight.clone()
        wrong[rows] *= -1
        save_file(whole | {name: wrong}, folder / SINGLE_NAME, {"format": "pt"})
        assert logit_difference(logits_by_layer(folder, tokens, CPU), expected) > TOLERANCE, name


@pytest.mark.parametrize("change", ["missing", "shape", "unknown"])
def test_a_folder_with_other_weights_is_refused_a_layer_at_a_time_too(tmp_path: Path, change: str) -> None:
    folder, name = write_model(tmp_path), "model.layers.1.mlp.up_proj.weight"
    whole = load_file(folder / SINGLE_NAME)
    changed: dict[str, Any] = {
        "missing": {each: tensor for each, tensor in whole.items() if each != name},
        "shape": whole | {name: whole[name][:-1].contiguous()},
        "unknown": whole | {"model.layers.1.mlp.other.weight": torch.ones(2)},
    }[change]
    save_file(changed, folder / SINGLE_NAME, {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj|other"):
        logits_by_layer(folder, some_tokens(folder), CPU)


def test_what_is_free_decides_and_the_log_says_so(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    tokens = some_tokens(folder)
    needed = whole_check_bytes(geometry_of(folder), tokens.numel())
    assert stock_logits(folder, tokens, CPU)[1] == "transformers loads it"
    assert stock_logits(folder, tokens, CPU, usable=needed)[1] == "transformers loads it"
    layers: list[int] = []
    logits, words = stock_logits(folder, tokens, CPU, lambda: layers.append(1), usable=needed - 1)
    assert words.startswith("transformers computes it layer by layer (the whole takes 0.00 GiB in float32")
    assert len(layers) == geometry_of(folder).num_layers
    assert logit_difference(logits, whole_logits(folder, tokens, CPU)) < TOLERANCE / 100


def drop(_logits: torch.Tensor) -> None:
    """Keep no logits."""


@pytest.mark.parametrize("vocabulary", [512, 16_384])
def test_its_memory_is_that_of_a_layer_as_the_estimate_says(tmp_path: Path, vocabulary: int) -> None:
    """Measured in PyTorch's allocator, for many layers and for many words."""
    folder = write_model(
        tmp_path, num_hidden_layers=16, hidden_size=256, intermediate_size=768, vocab_size=vocabulary, head_dim=64
    )
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / SINGLE_NAME).items()}
    save_file(weights, folder / SINGLE_NAME, {"format": "pt"})
    tokens, geometry = some_tokens(folder, 128), geometry_of(folder)
    logits_by_layer(folder, tokens[:, :2], CPU)  # what is made once must not count
    mapped = (folder / SINGLE_NAME).stat().st_size  # the allocator tells of files that are mapped, which take nothing
    by_layer = allocated_peak(lambda: drop(logits_by_layer(folder, tokens, CPU))) - mapped
    assert layer_check_bytes(geometry, tokens.numel()) == pytest.approx(by_layer, rel=0.25)
    assert by_layer < whole_check_bytes(geometry, tokens.numel()) / 2


def test_a_large_model_needs_the_memory_of_one_layer() -> None:
    layer = 202_375_168 * 4
    assert layer_check_bytes(LLAMA_7B) == pytest.approx(layer, rel=0.25)
    assert whole_check_bytes(LLAMA_7B) > 30 * layer
