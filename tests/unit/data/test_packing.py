"""Where documents begin, as a store of data.packing=documents has it: against documents tokenised one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import train_tokenizer
from transact.data import token_parts
from transact.data.chat_template import ChatTemplate
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.token_parts import Packing
from transact.data.token_store import STARTS_NAME, TOKENS_NAME, TokenStore, store_damage
from transact.data.tokenising import write_token_store
from transact.data.training_text import JoinedStores
from transact.stages.texts import check_has_targets

LENGTH = 16
TEXTS = ["def f(x): return x\n" * 30, "import os", "", "a", "", "print('naïve €')\n" * 5, "a", "x = 1\n" * 200]
TURNS = "{% for m in messages %}{{ m.role }}:{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}assistant:"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(TEXTS))
    return train_tokenizer(path)


def stored(folder: Path, tokenizer: Any, texts: list[str] = TEXTS, **packing: Any) -> TokenStore:
    packing = {"by_document": True} | packing
    write_token_store(folder, texts, tokenizer, Packing(sequence_length=LENGTH, max_sequences=1000, **packing))
    return TokenStore(folder)


def by_hand(lengths: list[int], num_sequences: int) -> list[list[int]]:
    """Positions within documents of these lengths, which begin anew with a sequence too."""
    within = [place for length in lengths for place in range(length)]
    found = []
    for start in range(0, num_sequences * LENGTH, LENGTH):
        row = within[start : start + LENGTH]
        first = next((number for number, place in enumerate(row) if place == 0), LENGTH)
        found.append([*range(first), *row[first:]])
    return found


@pytest.mark.parametrize("marks", ["auto", "none"])
@pytest.mark.parametrize("characters", [40, 10**6], ids=["many parts", "one part"])
def test_positions_begin_anew_at_every_document(
    marks: str, characters: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without marks too, where nothing in the tokens tells, with empty documents, and documents in several parts."""
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", characters)
    monkeypatch.setattr(token_parts, "PIECE_CHARACTERS", 100)
    store = stored(tmp_path / "s", tokenizer, marks=document_marks(tokenizer, marks))
    every = torch.arange(store.num_sequences)
    lengths = [len(tokenizer(text)["input_ids"]) + (marks == "auto") for text in TEXTS]
    found, counted = store.position_ids(every), store.counted(every)
    assert found is not None and counted is not None
    assert found.tolist() == by_hand(lengths, store.num_sequences)
    starts = torch.zeros(sum(lengths), dtype=torch.bool)
    starts[[sum(lengths[:number]) for number, length in enumerate(lengths) if length]] = True
    assert counted.flatten().equal(~starts[: counted.numel()])  # nothing tells the first token of a document
    assert store.num_targets(every) == int(counted[:, 1:].sum()) < len(every) * (LENGTH - 1)


def test_the_tokens_are_those_of_a_stream_and_the_digest_is_not(tokenizer: Any, tmp_path: Path) -> None:
    store, other = stored(tmp_path / "s", tokenizer), stored(tmp_path / "stream", tokenizer, by_document=False)
    assert store.index["files"][TOKENS_NAME] == other.index["files"][TOKENS_NAME] and store.sha256 != other.sha256
    assert other.position_ids(torch.arange(2)) is None and other.counted(torch.arange(2)) is None
    assert not (tmp_path / "stream" / STARTS_NAME).exists()
    path = tmp_path / "s" / STARTS_NAME
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert STARTS_NAME in str(store_damage(tmp_path / "s"))


def test_a_conversation_is_a_document_whose_answers_count(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TURNS + "{% endif %}"
    chat = ChatTemplate(tokenizer, DocumentMarks(), answers=True)
    turns = [{"role": "user", "content": "def f(x)"}, {"role": "assistant", "content": "return x"}]
    texts = [json.dumps({"messages": turns * count}) for count in (1, 3, 2, 1)]
    store = stored(tmp_path / "s", tokenizer, texts, marks=DocumentMarks(), chat=chat)
    every = torch.arange(store.num_sequences)
    encoded = chat.encode(texts)
    found, counted = store.position_ids(every), store.counted(every)
    assert found is not None and counted is not None
    assert found.tolist() == by_hand([len(each.tokens) for each in encoded], store.num_sequences)
    assert counted.flatten().tolist() == [each for one in encoded for each in one.counted][: counted.numel()]


def test_stores_read_as_one_have_the_positions_of_each(tokenizer: Any, tmp_path: Path) -> None:
    stores = {name: stored(tmp_path / name, tokenizer, texts) for name, texts in (("a", TEXTS), ("b", TEXTS[::-1]))}
    count = stores["a"].num_sequences
    found = JoinedStores(stores).position_ids(torch.tensor([count + 2, 1, count]))
    of_b, of_a = stores["b"].position_ids(torch.tensor([2, 0])), stores["a"].position_ids(torch.tensor([1]))
    assert found is not None and of_a is not None and of_b is not None
    assert found.equal(torch.stack([of_b[0], of_a[0], of_b[1]]))
    stream = {name: stored(tmp_path / f"{name}_stream", tokenizer, by_document=False) for name in "ab"}
    assert JoinedStores(stream).position_ids(torch.tensor([0, count])) is None


def test_documents_of_one_token_have_no_loss(tokenizer: Any, tmp_path: Path) -> None:
    store = stored(tmp_path / "s", tokenizer, ["a"] * 40, marks=DocumentMarks())
    with pytest.raises(ValueError, match=r"of it hold no token with a loss \(data\.packing=documents: the first"):
        check_has_targets("data.evaluation", store, torch.arange(store.num_sequences), "it")
