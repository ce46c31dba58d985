"""The GGUF file in real llama.cpp: it computes and says what the exported folder does in transformers."""

from __future__ import annotations

import inspect
import math
import re
import shlex
import shutil
import textwrap
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.gguf_files import gguf_markdown, measure
from tests.support import llama_cpp_use
from tests.support.commands import REPOSITORY
from tests.support.exported import prune_folder, random_selection, slice_folder
from tests.support.tiny import train_tokenizer, write_text_files
from tests.support.tiny_families import write_family_model
from transact.errors import Failure
from transact.estimate.storage import gguf_bytes
from transact.export.folder import write_export
from transact.export.gguf import write_gguf
from transact.export.k_quants import K_QUANTS, write_k_quants
from transact.files import read_json, write_json
from transact.geometry import Widths
from transact.models.folder import geometry_of
from transact.models.rotary import rope_settings
from transact.models.stock import load_model
from transact.stages.export import compared_in_llama_cpp

DEMO_PARENT = REPOSITORY / "transact" / "assets" / "demo_parent"
LENGTH, PROMPT, NEW_TOKENS = 256, 20, 80
TEXTS = ["def f(x): # 12345 don't", "  for i in range(10):\n\t\tpass\n\n", "Übergröße, 世界: naïve 🙂 x²"]
# Greedy choices may differ where two logits are nearer than float16 tells apart; none do here.
FLOAT16_TOLERANCE = 0.05


def tokens_of(folder: Path, *sources: Any, sequences: int) -> torch.Tensor:
    text = "\n".join(inspect.getsource(source) for source in sources)
    found = AutoTokenizer.from_pretrained(folder, model_max_length=10**9)(text).input_ids
    return torch.tensor(found[: sequences * LENGTH]).view(sequences, LENGTH)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the demo parent's inner dimensions, cut by the method; nothing is trained."""
    folder = tmp_path_factory.mktemp("demo")
    calibration = tokens_of(DEMO_PARENT, ArgumentParser, sequences=16)
    sliced = prune_folder(DEMO_PARENT, folder / "sliced", calibration, head_dim=16, intermediate_size=320)
    return export(sliced, folder / "export")


def export(sliced: Path, folder: Path) -> Path:
    folder.mkdir()
    write_export(sliced, folder, "float32", "# a model\n")
    return folder


def ask(folder: Path, kind: str, where: Path, sequences: torch.Tensor) -> dict[str, Any]:
    """llama.cpp's answers."""
    (write_k_quants if kind in K_QUANTS else write_gguf)(folder, where / "model.gguf", kind, "model")
    return llama_cpp_use.ask(
        where / "model.gguf",
        where,
        sequences=sequences.tolist(),
        prompt=sequences[0, :PROMPT].tolist(),
        new_tokens=NEW_TOKENS,
        texts=TEXTS,
    )


def perplexity(logits: torch.Tensor, sequences: torch.Tensor) -> float:
    targets = sequences[:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets).exp())


@torch.no_grad()
def transformers_say(folder: Path, sequences: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    model = load_model(folder, dtype=torch.float32).eval()
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model(sequences).logits, model.generate(sequences[:1, :PROMPT], **settings)[0].tolist()


def test_float16_says_the_same_tokens(exported: Path, tmp_path: Path) -> None:
    """With `longrope` factors in config.json, and a tokenizer that splits digits."""
    assert rope_settings(read_json(exported / "config.json"))["rope_type"] == "longrope"
    sequences = tokens_of(exported, textwrap, shlex, sequences=4)
    logits, greedy = transformers_say(exported, sequences)
    found = ask(exported, "f16", tmp_path, sequences)
    assert float((found["logits"] - logits).abs().max()) < FLOAT16_TOLERANCE
    assert len(greedy) == PROMPT + NEW_TOKENS and found["greedy"] == greedy
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert found["texts"] == [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


@pytest.mark.parametrize(
    ("kind", "share"), [("q8_0", 0.01), ("q6_k", 0.01), ("q5_k_m", 0.06), ("q4_k_m", 0.1), ("q4_0", 0.25)]
)
def test_perplexity_of_quantised_weights(exported: Path, tmp_path: Path, kind: str, share: float) -> None:
    """q8_0: within one per cent. Four bits cost a model of this size a lot; it is only not broken."""
    sequences = tokens_of(exported, textwrap, shlex, sequences=8)
    logits, _ = transformers_say(exported, sequences)
    expected = perplexity(logits, sequences)
    found = perplexity(ask(exported, kind, tmp_path, sequences)["logits"], sequences)
    assert found == pytest.approx(expected, rel=share)


def test_the_check_of_the_job_tells_a_file_with_other_frequencies(exported: Path, tmp_path: Path) -> None:
    """Such a file loads without a word: what stands in config.json decides what it computes."""
    tokens = tokens_of(exported, textwrap, sequences=1)[0, :64]
    logits = load_model(exported, dtype=torch.float32)(tokens[None]).logits[0].detach()

    def compared(folder: Path, kind: str) -> str:
        file = tmp_path / f"{folder.name}_{kind}.gguf"
        write_gguf(folder, file, kind, "model")
        return compared_in_llama_cpp(file, kind, tokens, lambda: logits)

    assert compared(exported, "f32").endswith("a token differs by 0.0000 (mean of 63)")
    assert re.search(r"llama\.cpp loads it: .* a token differs by 0\.00[0-4]", compared(exported, "f16"))
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    config = read_json(other / "config.json")
    plain = {"rope_type": "default", "rope_theta": rope_settings(config)["rope_theta"]}
    for name in {"rope_parameters", "rope_scaling"} & config.keys():
        config[name] = plain
    write_json(other / "config.json", config)
    assert re.search(r"a token differs by 0\.[1-9]", compared(other, "f16"))
    with pytest.raises(RuntimeError, match=r"differ from those of transformers by 0\.[1-9]"):
        compared(other, "f32")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "other_f32.gguf").read_bytes()[:100_000])
    with pytest.raises(Failure, match=r"llama\.cpp cannot compute the file .* without the package cyllama"):
        compared_in_llama_cpp(tmp_path / "cut.gguf", "f32", tokens, lambda: logits)


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"losses": [math.nan] * 7}, "by nan nats"), ({"unavailable": "No module named 'cyllama'"}, "not computed")],
)
def test_what_llama_cpp_does_not_say_is_told(
    answer: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transact.stages.export.ask", lambda python, script, question: answer)
    logits, tokens = torch.zeros(8, 16), torch.arange(8)
    if "losses" in answer:
        with pytest.raises(RuntimeError, match=said):
            compared_in_llama_cpp(tmp_path / "model.gguf", "q4_0", tokens, lambda: logits)
    else:
        model = Mock(return_value=logits)
        assert said in compared_in_llama_cpp(tmp_path / "model.gguf", "q4_0", tokens, model)
        model.assert_not_called()  # which may take minutes


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family(tmp_path: Path, family: str) -> None:
    """Qwen2 with its biases as a `llama`; Qwen3, which takes no factors, with pairs in progression."""
    parent = write_family_model(tmp_path / "parent", family, max_position_embeddings=512)
    train_tokenizer(write_text_files(tmp_path / "text")[0]).save_pretrained(parent)
    selection = random_selection(parent, head_dim=8, intermediate_size=96, pairs_in_progression=family == "qwen3")
    folder = export(slice_folder(parent, tmp_path / "sliced", selection), tmp_path / "export")
    sequences = torch.randint(0, 512, (2, 64), generator=torch.Generator().manual_seed(3))
    logits, greedy = transformers_say(folder, sequences)
    found = ask(folder, "f16", tmp_path, sequences)
    assert float((found["logits"] - logits).abs().max() / logits.abs().max()) < 0.01
    assert found["greedy"] == greedy


@pytest.mark.parametrize("head_dim", [32, 16], ids=["whole_heads", "rotary_factors"])
def test_layers_that_differ(tmp_path: Path, head_dim: int) -> None:
    """llama.cpp's `deci` takes MLP widths and heads of every layer."""
    sizes = [(1, 640), (2, 96), (2, 32), (1, 352)]
    widths = [Widths(num_key_value_heads=heads, intermediate_size=size) for heads, size in sizes]
    calibration = tokens_of(DEMO_PARENT, ArgumentParser, sequences=16)
    sliced = prune_folder(
        DEMO_PARENT, tmp_path / "sliced", calibration, head_dim=head_dim, intermediate_size=640, widths=widths
    )
    folder = export(sliced, tmp_path / "export")
    assert (rope_settings(read_json(folder / "config.json"))["rope_type"] == "longrope") == (head_dim == 16)
    sequences = tokens_of(folder, textwrap, sequences=1)
    logits, greedy = transformers_say(folder, sequences)
    found = ask(folder, "f16", tmp_path, sequences)
    assert float((found["logits"] - logits).abs().max()) < FLOAT16_TOLERANCE
    assert found["greedy"] == greedy
    for kind in ("f16", "q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind, "model")
        weights = sum(each.n_bytes for each in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors)
        assert gguf_bytes(geometry_of(folder), kind) == pytest.approx(weights, rel=0.02)


def test_the_benchmark_s_perplexities_are_those_of_the_folder(exported: Path) -> None:
    rows = measure(exported, tokens_of(exported, textwrap, sequences=2).tolist(), threads=1)
    assert [row["type"] for row in rows[:2]] == ["folder, float32", "f32"]
    assert rows[1]["perplexity"] == pytest.approx(rows[0]["perplexity"], rel=1e-4)
    assert rows[2]["perplexity"] == pytest.approx(rows[0]["perplexity"], rel=1e-2)
    size = {row["type"]: row["bytes"] for row in rows}
    assert size["f32"] > size["f16"] > size["q8_0"] > size["q4_k_m"]
    assert len(gguf_markdown({"models": {"cut": {"rows": rows}}}).splitlines()) == len(rows) + 2


def test_control_a_file_without_factors_is_broken(exported: Path, tmp_path: Path) -> None:
    """What llama.cpp's own converter would write: the comparison sees it."""
    import transact.export.gguf as gguf_file

    sequences = tokens_of(exported, textwrap, sequences=1)
    logits, greedy = transformers_say(exported, sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_file, "frequency_factors", lambda config: None)
        found = ask(exported, "f16", tmp_path, sequences)
    assert found["greedy"] != greedy
    assert float((found["logits"] - logits).abs().max()) > 20 * FLOAT16_TOLERANCE


def test_k_quants_say_what_has_none_and_are_as_large_as_foreseen(tmp_path: Path) -> None:
    """Rows of 256 weights have them, those of 32 have types of about as many bits, those of 100 float16."""
    parent = write_family_model(tmp_path / "parent", "llama", hidden_size=256, intermediate_size=512, vocab_size=512)
    train_tokenizer(write_text_files(tmp_path / "text")[0]).save_pretrained(parent)
    selection = random_selection(parent, head_dim=8, intermediate_size=100)
    folder = export(slice_folder(parent, tmp_path / "sliced", selection), tmp_path / "export")
    for kind in K_QUANTS:
        others = write_k_quants(folder, tmp_path / f"{kind}.gguf", kind, "model")
        assert {name.split(".")[2] for name in others} == {"attn_output", "ffn_down"}
        assert all(name.endswith("(F16)") == ("ffn_down" in name) for name in others)
        weights = sum(each.n_bytes for each in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors)
        assert gguf_bytes(geometry_of(folder), kind) == pytest.approx(weights, rel=0.1)
    assert sorted(path.name for path in tmp_path.glob("*gguf")) == sorted(f"{kind}.gguf" for kind in K_QUANTS)
