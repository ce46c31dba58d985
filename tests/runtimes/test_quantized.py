"""`transact quantize` in the real llm-compressor: variants keep what they are made of, and vLLM computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.runtimes.environments import ask, python_of
from tests.support.commands import Workplace, transact
from tests.support.tiny import train_tokenizer, write_model, write_text_files
from transact.errors import DONE
from transact.export.folder import GUARD_NAME
from transact.files import read_json
from transact.quantize.command import main

pytestmark = [pytest.mark.runtimes, pytest.mark.nightly]

SCHEMES = ("w4a16", "fp8")
PROMPT, NEW_TOKENS = [(7 * place + 3) % 512 for place in range(20)], 4
# Heads that vLLM takes on CPUs, before and after; rows of 160 channels, which 128 does not divide.
PARENT: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
}
CUT = ["prune.rounds=1", "prune.head_dim=32", "prune.intermediate_size=160", "prune.remove_fraction=null"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose export has rotary factors, with its variants."""
    python = python_of("llmcompressor")
    folder = tmp_path_factory.mktemp("quantised")
    train, heldout = write_text_files(folder / "text")
    model = write_model(folder / "model", **PARENT)
    train_tokenizer(train).save_pretrained(model)
    workplace = Workplace(folder=folder, model=model, train=train, heldout=heldout)
    asked = [each for each in workplace.overrides("tiny") if not each.startswith("prune.multiple")]
    ended = transact([*asked, *CUT, "prune.target=vllm", "eval.efficiency.measured=false"])
    assert ended.returncode == DONE, ended.stderr
    assert main([str(folder / "tiny"), "--python", str(python), "--schemes", *SCHEMES]) == DONE
    return folder / "tiny"


def test_figures_of_the_four_models(run: Path) -> None:
    """The environment computes the run's own perplexity, so that rotary factors are read there; fp8 stays near it."""
    result = read_json(run / "result.json")
    rows = {(row["model"], row["scheme"]): row for row in read_json(run / "quantized" / "comparison.json")["rows"]}
    assert len(rows) == 6
    for model, role in (("parent", "dense"), ("pruned", "pruned")):
        dense, four, eight = (rows[model, scheme] for scheme in ("none", *SCHEMES))
        assert dense["perplexity"] == pytest.approx(result[role]["perplexity"], rel=1e-4)
        assert eight["perplexity"] == pytest.approx(dense["perplexity"], rel=0.05)
        assert four["perplexity"] == pytest.approx(dense["perplexity"], rel=0.3)
        assert 0 < eight["logit_difference"] < four["logit_difference"] < 1
        assert four["bytes"] < eight["bytes"] < dense["bytes"]
    assert rows["pruned", "w4a16"]["groups"] == "groups of 128, of 32 in down_proj"
    assert "pruned, w4a16" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_folder_is_the_exports_but_for_its_weights(run: Path, scheme: str) -> None:
    folder = run / "quantized" / f"pruned-{scheme}"
    ours, theirs = (read_json(each / "config.json") for each in (folder, run / "export"))
    changed = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert (
        changed == {"quantization_config", "dtype", "torch_dtype"}
        and ours["rope_parameters"]["rope_type"] == "longrope"
    )
    guards = [load_file(each / "model.safetensors")[GUARD_NAME] for each in (folder, run / "export")]
    assert guards[0].equal(guards[1])
    assert (folder / "tokenizer.json").read_bytes() == (run / "export" / "tokenizer.json").read_bytes()


def test_vllm_computes_what_transformers_does(run: Path, tmp_path: Path) -> None:
    """fp8 in float32: the same tokens. Its kernel for 4 bits computes in bfloat16 alone, which may turn a near tie."""
    folders = {scheme: str(run / "quantized" / f"pruned-{scheme}") for scheme in SCHEMES}
    asked = {"prompt": PROMPT, "new_tokens": NEW_TOKENS}
    expected = ask("in_llmcompressor", asked | {"models": folders}, tmp_path)
    found = ask("in_vllm", asked | {"models": {name: f"auto:{each}" for name, each in folders.items()}}, tmp_path)
    assert found["fp8"]["tokens"] == expected["fp8"]["tokens"]
    assert found["fp8"]["logprobs"] == pytest.approx(expected["fp8"]["logprobs"], abs=0.1)
    assert found["w4a16"]["prompt_logprobs"] == pytest.approx(expected["w4a16"]["prompt_logprobs"], abs=0.1)
