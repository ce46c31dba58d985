"""What stands in the GGUF file, read back by the gguf package, and what is refused before there is one."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.exported import write_exported
from tests.support.sentencepiece_tokenizer import train_sentencepiece
from tests.support.tiny import write_text_files
from transact.config.run import RunConfig
from transact.estimate.storage import gguf_bytes
from transact.export.gguf import (
    add_tokenizer,
    check_gguf,
    check_tokenizer,
    possible_gguf_types,
    pre_tokenizer_name,
    write_gguf,
)
from transact.export.k_quants import check_quantiser
from transact.files import read_json, write_json
from transact.models.folder import geometry_of
from transact.models.llama import read_geometry
from transact.models.rotary import inverse_frequencies
from transact.pruning.targets import float16_rows
from transact.rounds import outline
from transact.stages.preflight import with_batch

gguf = pytest.importorskip("gguf")

SIX_HEADS = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "intermediate_size": 640,
    "vocab_size": 4096,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "attention_factor": 1.0,
    "short_factor": [1.0, 2.0],
    "long_factor": [1.0, 2.0],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("exported"), {"head_dim": 8}, dtype="bfloat16")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {
        tensor.name: tensor for tensor in reader.tensors
    }


def checked(config: RunConfig, described: dict[str, Any]) -> None:
    config = with_batch(replace(config, data=replace(config.data, sequence_length=64)), world_size=1)
    check_gguf(config, described, outline(config, read_geometry(described)))


def test_says_what_the_folder_says(exported: Path, tmp_path: Path) -> None:
    write_gguf(exported, tmp_path / "model.gguf", "f16", "half")
    fields, tensors = read(tmp_path / "model.gguf")
    config, stored = read_json(exported / "config.json"), load_file(exported / "model.safetensors")
    geometry = geometry_of(exported)
    assert fields["general.architecture"] == "llama" and fields["general.name"] == "half"
    assert fields["llama.attention.key_length"] == fields["llama.rope.dimension_count"] == geometry.head_dim
    assert fields["llama.feed_forward_length"] == geometry.intermediate_size
    assert fields["llama.context_length"] == config["max_position_embeddings"]
    assert len(fields["tokenizer.ggml.tokens"]) == geometry.vocab_size
    assert fields["tokenizer.ggml.eos_token_id"] == 0 and fields["tokenizer.ggml.pre"] == "gpt-2"

    # Tied embeddings are stored once; a rotary factor divides the frequency that theta gives.
    assert "output.weight" not in tensors and "token_embd.weight" in tensors
    plain = fields["llama.rope.freq_base"] ** (-torch.arange(0, geometry.head_dim, 2) / geometry.head_dim)
    rotated = plain / torch.from_numpy(tensors["rope_freqs.weight"].data.copy())
    torch.testing.assert_close(rotated.double(), inverse_frequencies(config), rtol=1e-5, atol=0)

    # Neighbouring rows of a head hold the dims that transformers keeps half a head apart.
    ours = stored["model.layers.1.self_attn.k_proj.weight"].view(2, 2, 4, -1).float()
    theirs = torch.from_numpy(tensors["blk.1.attn_k.weight"].data.copy()).view(2, 4, 2, -1).float()
    torch.testing.assert_close(theirs, ours.transpose(1, 2), rtol=1e-3, atol=1e-6)
    down = torch.from_numpy(tensors["blk.0.ffn_down.weight"].data.copy()).float()
    torch.testing.assert_close(down, stored["model.layers.0.mlp.down_proj.weight"].float(), rtol=1e-3, atol=1e-6)
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(("kind", "error"), [("q8_0", 0.006), ("q4_0", 0.09)])
def test_quantised_weights_are_near(exported: Path, tmp_path: Path, kind: str, error: float) -> None:
    """Within half a step of the largest weight of a block."""
    write_gguf(exported, tmp_path / "model.gguf", kind, "half")
    _, tensors = read(tmp_path / "model.gguf")
    stored = load_file(exported / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    quantised = tensors["blk.0.ffn_down.weight"]
    assert quantised.tensor_type.name == kind.upper()
    found = torch.from_numpy(gguf.dequantize(quantised.data, quantised.tensor_type))
    assert 0 < float((found - stored).abs().max() / stored.abs().max()) < error


def test_a_weight_too_large_for_float16_is_an_error(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "large"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(OverflowError, match=r"mlp.up_proj.weight holds .*too large for float16"):
        write_gguf(folder, tmp_path / "model.gguf", "f16", "half")


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = [
    {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
    GPT2 | {"use_regex": False},
]


def tokenizer(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}, "model": model}


@pytest.mark.parametrize(
    ("steps", "model", "name"),
    [
        ([GPT2], {}, "gpt-2"),
        ([DIGITS, GPT2], {}, "smollm"),
        (LLAMA3, {"ignore_merges": True}, "llama-bpe"),
    ],
)
def test_pre_tokenizers_have_their_names(steps: list[dict[str, Any]], model: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(tokenizer(*steps, **model)) == name


@pytest.mark.parametrize(
    ("steps", "model"),
    [
        ([GPT2 | {"add_prefix_space": True}], {}),
        ([DIGITS | {"individual_digits": False}, GPT2], {}),
        ([GPT2, DIGITS], {}),
        (LLAMA3, {"ignore_merges": False}),
        ([{"type": "Whitespace"}, GPT2], {}),
    ],
)
def test_rules_that_llama_cpp_does_not_know_are_refused(steps: list[dict[str, Any]], model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="splits text by rules"):
        pre_tokenizer_name(tokenizer(*steps, **model))


def test_a_folder_without_a_known_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", {"pre_tokenizer": None, "model": {"type": "WordPiece"}})
    with pytest.raises(ValueError, match="neither a byte-level BPE"):
        check_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "family", "message"),
    [
        (["prune.method.pair_scope=layer"], "llama", "the scope must be model"),
        (["prune.target=transformers"], "qwen3", "it must be progression"),
    ],
)
def test_what_llama_cpp_cannot_take_is_refused(overrides: list[str], family: str, message: str) -> None:
    from tests.support.cards import composed

    config = composed("owner/parent", "export.gguf=q8_0", "prune.split=equal", "prune.remove_fraction=0.3", *overrides)
    with pytest.raises(ValueError, match=message):
        checked(config, SIX_HEADS | {"model_type": family})


def test_a_family_without_factors_may_keep_its_heads_whole() -> None:
    from tests.support.cards import composed

    config = composed("owner/parent", "prune=explicit", "prune.intermediate_size=320", "export.gguf=q8_0")
    checked(config, SIX_HEADS | {"model_type": "qwen3"})


@pytest.mark.parametrize("target", ["any", "llama_cpp"])
def test_such_a_family_keeps_them_whole_for_its_target(target: str) -> None:
    from tests.support.cards import composed

    config = composed("owner/parent", f"prune.target={target}", "prune.remove_fraction=0.3", "export.gguf=q8_0")
    checked(config, SIX_HEADS | {"model_type": "qwen3"})


def test_rows_that_no_block_divides_are_refused_in_the_parent_alone() -> None:
    """Of what is cut, a weight may stay float16; of what is never cut, all would."""
    from tests.support.cards import composed

    overrides = ("export.gguf=q8_0", "prune.split=equal", "prune.target=transformers", "prune.remove_fraction=0.3")
    config = composed("owner/parent", *overrides, "prune.multiple.intermediate_size=1")
    checked(config, SIX_HEADS | {"model_type": "llama"})
    with pytest.raises(ValueError, match=r"hidden_size is 168, and q8_0 takes multiples of 32; it must be f32 or f16"):
        checked(config, SIX_HEADS | {"model_type": "llama", "hidden_size": 168})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 3e3}}, None),
        ({"model_type": "qwen3", "rope_parameters": LONGROPE}, "the exported model has rotary factors"),
        ({"model_type": "llama", "rope_parameters": LONGROPE, "intermediate_size": 101}, None),
        ({"model_type": "transact_llama", "rotary_inverse_frequencies": [[[1.0]]]}, "frequencies of their own"),
    ],
)
def test_a_finished_run_is_judged_by_its_result(tmp_path: Path, result: dict[str, Any], message: str | None) -> None:
    """Not by what it might have ended with: free pairs were allowed in all of these."""
    from tests.support.cards import composed

    (tmp_path / "export").mkdir()
    write_json(tmp_path / "export" / "config.json", SIX_HEADS | result)
    overrides = ("export.gguf=q8_0", "prune.target=transformers", f"output_dir={tmp_path}")
    parent = SIX_HEADS | {"model_type": result["model_type"].removeprefix("transact_")}
    if message is None:
        checked(composed("owner/parent", *overrides), parent)
    else:
        with pytest.raises(ValueError, match=message):
            checked(composed("owner/parent", *overrides), parent)


def test_no_file_is_promised_of_an_unknown_tokenizer(exported: Path, tmp_path: Path) -> None:
    described = read_json(exported / "config.json")
    assert possible_gguf_types(described, exported) != []
    write_json(tmp_path / "tokenizer.json", {"pre_tokenizer": None, "model": {"type": "WordPiece"}})
    assert possible_gguf_types(described, tmp_path) == []


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_rows_that_no_block_divides_stay_float16(tmp_path: Path, kind: str) -> None:
    """4 heads of 10 dims: rows of 40 in o_proj; all other rows fill blocks of 32."""
    folder = write_exported(tmp_path, {"head_dim": 10}, dtype="bfloat16")
    in_float16 = write_gguf(folder, tmp_path / "model.gguf", kind, "half")
    layers = geometry_of(folder).num_layers
    assert in_float16 == [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(layers)]
    assert float16_rows(geometry_of(folder)) == {"o_proj": 40}
    _, tensors = read(tmp_path / "model.gguf")
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "attn_output" in name} == {"F16"}
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "ffn" in name and "norm" not in name} == {
        kind.upper()
    }
    stored = load_file(folder / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"].float()
    found = torch.from_numpy(tensors["blk.1.attn_output.weight"].data.copy()).float()
    torch.testing.assert_close(found, stored, rtol=1e-3, atol=1e-6)


def test_float32_keeps_every_weight_as_it_is(tmp_path: Path) -> None:
    """Rows that no block divides too, and as many bytes as foreseen."""
    folder = write_exported(tmp_path, {"head_dim": 10})
    assert write_gguf(folder, tmp_path / "model.gguf", "f32", "whole") == []
    _, tensors = read(tmp_path / "model.gguf")
    stored = load_file(folder / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(torch.from_numpy(tensors["blk.1.attn_output.weight"].data.copy()), stored)
    weights = sum(tensor.n_bytes for name, tensor in tensors.items() if name != "rope_freqs.weight")
    assert weights == gguf_bytes(geometry_of(folder), "f32") == 4 * geometry_of(folder).parameters()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.cards import composed

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"export.gguf='f16' needs the package gguf: pip install 'transact\[gguf\]'"):
        checked(
            composed("owner/parent", "export.gguf=f16", "prune.remove_fraction=0.3"),
            SIX_HEADS | {"model_type": "llama"},
        )
    check_quantiser("q8_0")
    with pytest.raises(ValueError, match=r"needs the package cyllama: pip install 'transact\[gguf,quantise\]'"):
        check_quantiser("q4_k_m")


def test_what_is_added_behind_the_pieces_of_sentencepiece_stays_what_it_is(tmp_path: Path) -> None:
    """Fine-tunes add marks of chats; transformers 5 lists them in tokenizer.json alone."""
    folder = tmp_path / "model"
    shutil.copytree(write_exported(tmp_path / "exported", {"head_dim": 8}), folder)
    train_sentencepiece(folder, write_text_files(tmp_path / "text")[0])
    path = folder / "tokenizer.json"
    described = read_json(path)
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"].append({"id": 501, "content": "<|im_start|>", **mark})
    write_json(path, described)
    write_json(
        folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") | {"add_prefix_space": False}
    )
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    add_tokenizer(writer, folder, 504)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields, _ = read(tmp_path / "vocabulary.gguf")
    assert fields["tokenizer.ggml.tokens"][500:] == ["[PAD500]", "<|im_start|>", "[PAD502]", "[PAD503]"]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[501] == gguf.TokenType.CONTROL and kinds[500] == kinds[503] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.add_space_prefix"] is False
