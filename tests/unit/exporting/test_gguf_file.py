"""What stands in the GGUF file, read back by the gguf package, and what is refused before there is one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.exported import write_exported
from transact.exporting.gguf_file import write_gguf
from transact.exporting.gguf_request import check_gguf, check_gguf_dimensions, possible_gguf_types
from transact.exporting.gguf_tokenizer import check_tokenizer, pre_tokenizer_name
from transact.files import read_json, write_json
from transact.models.folder import geometry_of
from transact.models.rotary import inverse_frequencies

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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("exported"), {"head_dim": 8}, dtype="bfloat16")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {
        tensor.name: tensor for tensor in reader.tensors
    }


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
        (["prune.multiple.intermediate_size=1"], "llama", r"intermediate_size may become \d+.*=32 or prune/multiple"),
        (["prune.method.pair_scope=layer", "model.allow_non_stock=true"], "llama", "the scope must be model"),
        ([], "qwen3", "it must be progression"),
    ],
)
def test_what_llama_cpp_cannot_take_is_refused(overrides: list[str], family: str, message: str) -> None:
    from tests.support.cards import composed

    config = composed("owner/parent", "export.gguf=q8_0", "prune.split=equal", "prune.remove_fraction=0.3", *overrides)
    with pytest.raises(ValueError, match=message):
        check_gguf(config, SIX_HEADS | {"model_type": family})


def test_a_family_without_factors_may_keep_its_heads_whole() -> None:
    from tests.support.cards import composed

    config = composed("owner/parent", "prune=explicit", "prune.intermediate_size=320", "export.gguf=q8_0")
    check_gguf(config, SIX_HEADS | {"model_type": "qwen3"})


def test_whole_heads_that_fill_no_block_are_named() -> None:
    """A multiple of head_dim would not help."""
    from tests.support.cards import composed

    overrides = ("prune/method=paper_heads", "prune.split=equal", "prune.remove_fraction=0.3", "export.gguf=q8_0")
    with pytest.raises(ValueError, match=r"heads of 12 may stay.*it must be f16, or prune\.method\.attention pairs"):
        check_gguf(composed("owner/parent", *overrides), SIX_HEADS | {"model_type": "llama", "head_dim": 12})


def test_no_file_is_promised_of_an_unknown_tokenizer(exported: Path, tmp_path: Path) -> None:
    described = read_json(exported / "config.json")
    assert possible_gguf_types(described, exported) != []
    write_json(tmp_path / "tokenizer.json", {"pre_tokenizer": None, "model": {"type": "WordPiece"}})
    assert possible_gguf_types(described, tmp_path) == []


def test_rows_of_heads_count_together(exported: Path) -> None:
    from dataclasses import replace

    geometry = replace(geometry_of(exported), intermediate_size=64)
    check_gguf_dimensions("q4_0", replace(geometry, head_dim=8))  # 4 heads of 8 fill a block
    with pytest.raises(ValueError, match="head_dim may become 12, which makes rows of 48"):
        check_gguf_dimensions("q4_0", replace(geometry, head_dim=12))


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.cards import composed

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"export.gguf='f16' needs the package gguf: pip install 'transact\[gguf\]'"):
        check_gguf(composed("owner/parent", "export.gguf=f16"), {"model_type": "llama"})
