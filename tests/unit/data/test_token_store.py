"""The token store: exact tokens, packed, written once, finished or absent."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import train_tokenizer
from transact.data import token_store
from transact.data.token_store import TokenStore, store_folder, tokenizer_digest, write_token_store
from transact.stages.texts import load_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "import os, sys\n" * 30, "", "print('naïve €')\n" * 10]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(TEXTS))
    return train_tokenizer(path)


def expected_tokens(tokenizer: Any) -> list[int]:
    return [token for text in TEXTS for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]


def test_sequences_are_the_tokens_in_order(tokenizer: Any, tmp_path: Path) -> None:
    counted: list[int] = []
    write_token_store(tmp_path / "s", TEXTS, tokenizer, sequence_length=16, max_sequences=1000, progress=counted.append)
    store = TokenStore(tmp_path / "s")
    tokens = expected_tokens(tokenizer)
    assert store.num_sequences == len(tokens) // 16
    assert store.is_whole_text
    everything = store.sequences(torch.arange(store.num_sequences))
    assert everything.flatten().tolist() == tokens[: store.num_sequences * 16]
    assert store.sequences(torch.tensor([2, 0])).equal(everything[[2, 0]])
    assert sum(counted) == len(tokens)


def test_no_more_is_read_than_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield TEXTS[0]

    write_token_store(tmp_path / "s", endless(), tokenizer, sequence_length=16, max_sequences=5)
    store = TokenStore(tmp_path / "s")
    assert store.num_sequences == 5
    assert not store.is_whole_text


def test_a_long_document_in_pieces_has_the_same_tokens(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before a space where there is one; where there is none, no character is lost."""
    monkeypatch.setattr(token_store, "PIECE_CHARACTERS", 100)
    texts = ["some words of prose " * 100, "a b" * 33 + "a", "x" * 1000]
    write_token_store(tmp_path / "s", texts, tokenizer, sequence_length=1, max_sequences=10**6)
    store = TokenStore(tmp_path / "s")
    tokens = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
    whole = [token for text in texts[:2] for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert tokens[: len(whole)] == whole
    assert tokens.count(tokenizer.eos_token_id) == len(texts)
    assert tokenizer.decode(tokens[len(whole) : -1]) == texts[2]


def test_too_little_text_leaves_no_store(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one sequence of 64"):
        write_token_store(tmp_path / "s", ["short"], tokenizer, sequence_length=64, max_sequences=5)
    assert not (tmp_path / "s").exists()


def test_an_interrupted_attempt_is_no_store_and_does_not_disturb_the_next(tokenizer: Any, tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield TEXTS[0] * 10_000
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_token_store(tmp_path / "s", broken(), tokenizer, sequence_length=16, max_sequences=10**9)
    assert not (tmp_path / "s").exists()
    write_token_store(tmp_path / "s", TEXTS, tokenizer, sequence_length=16, max_sequences=3)
    assert TokenStore(tmp_path / "s").num_sequences == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_folder_follows_from_text_tokenizer_and_length(tmp_path: Path) -> None:
    identity = {"text": {"files": [["a", 1]]}, "tokenizer": "x", "sequence_length": 16}
    folder = store_folder(tmp_path, identity)
    assert store_folder(tmp_path, dict(reversed(identity.items()))) == folder
    assert store_folder(tmp_path, identity | {"sequence_length": 32}) != folder


def test_a_full_disk_is_told_as_such(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing."""
    make = token_store.fresh_temporary_folder

    def on_a_full_disk(final: Path) -> Path:
        folder = make(final)
        (folder / token_store.TOKENS_NAME).symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(token_store, "fresh_temporary_folder", on_a_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write_token_store(tmp_path / "s", TEXTS, tokenizer, sequence_length=16, max_sequences=1000)


def test_other_marks_of_documents_make_another_store(tokenizer: Any) -> None:
    """An instruct model may share the tokenizer.json of its base."""
    other = copy.deepcopy(tokenizer)
    assert tokenizer_digest(other) == tokenizer_digest(tokenizer)
    other.eos_token = other.convert_ids_to_tokens(1)
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


def test_what_a_tokenizer_was_trained_with_does_not_cut_documents(tokenizer: Any, tmp_path: Path) -> None:
    expected = tokenizer(TEXTS[0])["input_ids"]
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=2 * len(expected))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 8
    write_token_store(tmp_path / "s", [TEXTS[0]], load_tokenizer(tmp_path), sequence_length=1, max_sequences=10**6)
    store = TokenStore(tmp_path / "s")
    tokens = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
    assert tokens == [*expected, tokenizer.eos_token_id]
