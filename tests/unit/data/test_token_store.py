"""The token store: exact tokens, packed, written once, finished or absent."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import train_tokenizer
from transact.data import token_parts, tokenising
from transact.data.token_parts import Packing, document_hash
from transact.data.token_store import (
    COUNTED_NAME,
    FILE_NAMES,
    STARTS_NAME,
    TOKENS_NAME,
    TokenStore,
    remove_store,
    store_damage,
    store_folder,
    tokenizer_digest,
)
from transact.data.tokenising import Course, write_token_store
from transact.files import DamagedFile
from transact.models.stock import load_tokenizer

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
    write_token_store(
        tmp_path / "s",
        TEXTS,
        tokenizer,
        Packing(sequence_length=16, max_sequences=1000),
        course=Course(progress=lambda tokens, new: counted.append(tokens)),
    )
    store = TokenStore(tmp_path / "s")
    tokens = expected_tokens(tokenizer)
    assert store.num_sequences == len(tokens) // 16
    assert store.is_whole_text
    everything = store.sequences(torch.arange(store.num_sequences))
    assert everything.flatten().tolist() == tokens[: store.num_sequences * 16]
    assert store.sequences(torch.tensor([2, 0])).equal(everything[[2, 0]])
    assert sum(counted) == len(tokens)


@pytest.mark.parametrize("parts", range(1, 25))
def test_a_store_holds_its_sequences_and_nothing_behind_them(
    parts: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole parts may lie behind the last whole sequence, or a piece of one."""
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", 10)
    texts = [f"def f{number}(x): return x" for number in range(parts)]
    tokens = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    length = max(2, len(tokens) // 2)
    write_token_store(tmp_path / "s", texts, tokenizer, Packing(sequence_length=length, max_sequences=1000))
    store = TokenStore(tmp_path / "s")
    assert (tmp_path / "s" / TOKENS_NAME).stat().st_size == store.num_sequences * length * 2  # uint16
    assert store.largest_token == max(tokens[: store.num_sequences * length])


def test_no_more_is_read_than_asked_for(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", 20_000)

    def endless() -> Iterator[str]:
        while True:
            yield TEXTS[0]

    write_token_store(tmp_path / "s", endless(), tokenizer, Packing(sequence_length=16, max_sequences=5))
    store = TokenStore(tmp_path / "s")
    assert store.num_sequences == 5
    assert not store.is_whole_text


def test_a_long_document_in_pieces_has_the_same_tokens(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before a space where there is one; where there is none, no character is lost."""
    monkeypatch.setattr(token_parts, "PIECE_CHARACTERS", 100)
    texts = ["some words of prose " * 100, "a b" * 33 + "a", "x" * 1000]
    write_token_store(tmp_path / "s", texts, tokenizer, Packing(sequence_length=1, max_sequences=10**6))
    store = TokenStore(tmp_path / "s")
    tokens = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
    whole = [token for text in texts[:2] for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert tokens[: len(whole)] == whole
    assert tokens.count(tokenizer.eos_token_id) == len(texts)
    assert tokenizer.decode(tokens[len(whole) : -1]) == texts[2]


def test_too_little_text_leaves_no_store(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one sequence of 64"):
        write_token_store(tmp_path / "s", ["short"], tokenizer, Packing(sequence_length=64, max_sequences=5))
    assert list(tmp_path.iterdir()) == []  # nor what was written of it


def test_an_interrupted_attempt_is_no_store_and_does_not_disturb_the_next(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished of it is not tokenised again; what a process had at work when it was killed is removed."""
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", 20_000)
    monkeypatch.setattr(token_parts, "PIECE_CHARACTERS", 5_000)
    texts = [TEXTS[0] * 100, *TEXTS]  # several parts

    def broken() -> Iterator[str]:
        yield texts[0]
        raise OSError("the disk went away")

    packing = Packing(sequence_length=16, max_sequences=10**9)
    with pytest.raises(OSError, match="went away"):
        write_token_store(tmp_path / "s", broken(), tokenizer, packing)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s.tmp" / "tokens.bin").write_bytes(bytes(100))
    (tmp_path / "s.tmp" / f"part_000007.safetensors.{'0' * 32}.tmp").write_bytes(bytes(100))
    new: list[int] = []
    write_token_store(
        tmp_path / "s", texts, tokenizer, packing, course=Course(progress=lambda tokens, made: new.append(made))
    )
    write_token_store(tmp_path / "whole", texts, tokenizer, packing)
    stores = [TokenStore(tmp_path / name) for name in ("s", "whole")]
    assert stores[0].index == stores[1].index
    assert new[0] == 0 and 0 < sum(new) < stores[0].index["num_sequences"] * 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]
    assert {path.name for path in (tmp_path / "s").iterdir()} == {*STORED}


def test_a_damaged_part_is_tokenised_again(tokenizer: Any, tmp_path: Path) -> None:
    parts = token_parts.TextParts(TEXTS, tokenizer, Packing(sequence_length=16, max_sequences=1000))
    (tmp_path / "s.tmp").mkdir()
    found = parts.ensure(tmp_path / "s.tmp", 0)
    assert found is not None and found[1]
    path = token_parts.part_path(tmp_path / "s.tmp", 0)
    sound = path.read_bytes()
    for place in range(0, len(sound), 97):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert token_parts.read_part(path) is None, place
    for content in (b"", sound[:-1], sound + b"\0"):
        path.write_bytes(content)
        assert token_parts.read_part(path) is None
    whole = write(tmp_path / "whole", tokenizer)
    assert TokenStore(write(tmp_path / "s", tokenizer)).index == TokenStore(whole).index


def test_a_part_that_the_file_system_shows_late_is_waited_for(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_parts, "SHARED_FOLDER_SECONDS", 1.0)
    found = token_parts.TextParts(TEXTS, tokenizer, Packing(sequence_length=16, max_sequences=9)).ensure(tmp_path, 0)
    assert found is not None
    late = token_parts.part_path(tmp_path, 1)
    writer = threading.Timer(0.2, token_parts.write_part, (late, found[0]))
    writer.start()
    assert token_parts.read_seen_part(late).tokens.tolist() == found[0].tokens.tolist()
    writer.join()
    with pytest.raises(DamagedFile, match="is not there as it was written"):
        token_parts.read_seen_part(token_parts.part_path(tmp_path, 2))


def test_the_folder_follows_from_text_tokenizer_and_length(tmp_path: Path) -> None:
    identity = {"text": {"files": [["a", 1]]}, "tokenizer": "x", "sequence_length": 16}
    folder = store_folder(tmp_path, identity)
    assert store_folder(tmp_path, dict(reversed(identity.items()))) == folder
    assert store_folder(tmp_path, identity | {"sequence_length": 32}) != folder


def test_a_full_disk_is_told_as_such(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing."""
    monkeypatch.setattr(tokenising, "TOKENS_NAME", "/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_token_store(tmp_path / "s", TEXTS, tokenizer, Packing(sequence_length=16, max_sequences=1000))


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
    write_token_store(
        tmp_path / "s", [TEXTS[0]], load_tokenizer(tmp_path), Packing(sequence_length=1, max_sequences=10**6)
    )
    store = TokenStore(tmp_path / "s")
    tokens = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
    assert tokens == [*expected, tokenizer.eos_token_id]


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_link(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    other = path.with_name("..") / "elsewhere.bin"
    other.write_bytes(content[::-1])
    path.symlink_to(other)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut by two bytes": lambda path: changed(path, lambda content: content[:-2]),
    "cut in half": lambda path: changed(path, lambda content: content[: len(content) // 2]),
    "a byte longer": lambda path: changed(path, lambda content: content + b"\0"),
    "twice": lambda path: changed(path, lambda content: content * 2),
    "zeros": lambda path: changed(path, lambda content: bytes(len(content))),
    "brackets": lambda path: path.write_bytes(b"[" * 100_000),
    "missing": lambda path: path.unlink(),
    "a folder": become_folder,
    "a link to something else": become_link,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}
STORED = [name for name in FILE_NAMES if not name.endswith(".tmp") and name not in (COUNTED_NAME, STARTS_NAME)]


def write(folder: Path, tokenizer: Any) -> Path:
    write_token_store(folder, TEXTS, tokenizer, Packing(sequence_length=16, max_sequences=1000))
    return folder


def test_every_flipped_bit_is_found(tokenizer: Any, tmp_path: Path) -> None:
    """A bit of every byte of every file."""
    folder = write(tmp_path / "s", tokenizer)
    sound = store_damage(folder)
    for path in (folder / name for name in STORED):
        content = path.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            assert store_damage(folder), f"{path.name}, byte {place}"
        path.write_bytes(content)
    assert sound is None and store_damage(folder) is None


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_a_file_is_found(name: str, damage: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "s", tokenizer)
    DAMAGES[damage](folder / name)
    problem = store_damage(folder)
    assert problem and "\n" not in problem


def test_only_what_a_store_is_made_of_is_removed(tokenizer: Any, tmp_path: Path) -> None:
    """Files of a user, folders, and links in the place of a store; what a link inside a store leads to stays."""
    folder, precious = write(tmp_path / "s", tokenizer), tmp_path / "precious"
    precious.write_text("mine")
    for foreign in ("x.tmp", "notes.txt", ".hidden"):
        (folder / foreign).write_text("mine")
        with pytest.raises(ValueError, match=rf"^data\.token_store: .* holds '{foreign}'; move it away$"):
            remove_store(folder)
        assert (folder / foreign).read_text() == "mine" and store_damage(folder) is None
        (folder / foreign).unlink()
    (folder / "kept").mkdir()
    with pytest.raises(ValueError, match="holds 'kept'"):
        remove_store(folder)
    (folder / "kept").rmdir()

    (tmp_path / "link").symlink_to(folder)
    for place, what in ((tmp_path / "link", "a link"), (precious, "a file")):
        with pytest.raises(ValueError, match=f"is or holds {what}; move it away"):
            write(place, tokenizer)
    assert store_damage(tmp_path / "link") is None and precious.read_text() == "mine"

    (folder / "tokens.bin").unlink()
    (folder / "tokens.bin").symlink_to(precious)
    write(folder, tokenizer)
    assert store_damage(folder) is None and precious.read_text() == "mine"


DOCUMENTS = [f"document {number} speaks of {'naïve words ' * number}" for number in range(12)]


@pytest.mark.parametrize("shared", [0, 1, 5, 6])
def test_held_out_documents_are_left_out_and_counted(shared: int, tokenizer: Any, tmp_path: Path) -> None:
    """Up to a half of them, and white space around them makes no other document of them."""
    held_out = {document_hash(each) for each in DOCUMENTS[:shared]} | {*range(12 - shared)}
    text = [f"\n {DOCUMENTS[0]}\t", *DOCUMENTS[1:], DOCUMENTS[0]]
    for name, documents in (("all", text), ("fewer", DOCUMENTS[shared:] + DOCUMENTS[: 1 if shared == 0 else 0])):
        write_token_store(
            tmp_path / name, documents, tokenizer, Packing(sequence_length=1, max_sequences=10**6), without=held_out
        )
    both = [TokenStore(tmp_path / name) for name in ("all", "fewer")]
    assert both[0].index["documents_left_out"] == shared and both[1].index["documents_left_out"] == 0
    assert held_out.isdisjoint(both[0].documents().tolist())
    if shared:
        assert both[0].sha256 == both[1].sha256


def test_a_text_with_most_of_the_held_out_documents_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    held_out = {document_hash(each) for each in DOCUMENTS[:7]} | {*range(5)}
    with pytest.raises(ValueError, match=r"^data\.train holds 7 of the 12 documents of data\.evaluation word for word"):
        write_token_store(
            tmp_path / "s",
            DOCUMENTS,
            tokenizer,
            Packing(sequence_length=1, max_sequences=10**6),
            without=held_out,
            name="data.train",
        )
    assert not (tmp_path / "s").exists()
