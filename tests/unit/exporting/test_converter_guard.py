"""The tensor that stops converters: where factors are, under a name that only converters mind."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.exported import write_exported
from tests.support.tiny import TINY
from transact.engine.model_folder import layer_groups, stored_names
from transact.export.folder import GUARD_KEY, GUARD_NAME, guard_tensors, guarded_config
from transact.files import read_json
from transact.models.folder import check_files
from transact.models.rotary import inverse_frequencies
from transact.models.tensor_files import ModelReader

MLX_LM_SKIPS, TRANSFORMERS_SKIPS = "self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"  # names with this in them
CONVERTER_SKIPS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")  # names that end so


def test_an_export_with_factors_holds_it_and_is_still_a_parent(tmp_path: Path) -> None:
    folder = write_exported(tmp_path, {"head_dim": 10}, dtype="bfloat16")
    assert read_json(folder / "config.json")[GUARD_KEY] == "longrope"
    stored = load_file(folder / "model.safetensors")
    expected = inverse_frequencies(read_json(folder / "config.json"))
    assert torch.equal(stored[GUARD_NAME], expected.float())
    assert not GUARD_NAME.endswith(CONVERTER_SKIPS)
    check_files(folder)
    with ModelReader(folder) as reader:
        assert GUARD_NAME not in reader.files
        groups = layer_groups(stored_names(reader, read_json(folder / "config.json")))
        assert GUARD_NAME not in {name for names in groups for name in names}
    assert MLX_LM_SKIPS in GUARD_NAME and TRANSFORMERS_SKIPS in GUARD_NAME


def test_a_model_without_factors_needs_none() -> None:
    assert guard_tensors(TINY) == {}
    # As where a model with factors was pruned again, to pairs in progression.
    assert guarded_config(TINY | {GUARD_KEY: "longrope"}) == TINY


def test_the_word_stands_where_genai_reads_it_and_for_llamas_alone() -> None:
    linear = TINY | {"rope_scaling": {"type": "linear", "factor": 2.0}, "original_max_position_embeddings": 64}
    found = guarded_config(linear | {"model_type": "llama"})
    assert found[GUARD_KEY] == "linear" and "original_max_position_embeddings" not in found
    assert guarded_config(linear | {"model_type": "mistral"}) == linear | {"model_type": "mistral"}
