"""A text that is tokenised already becomes the same token store as the text itself."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.support.sentencepiece_tokenizer import train_sentencepiece
from tests.support.tiny import train_tokenizer, write_model, write_text_files
from tests.support.token_files import write_indexed_dataset
from transact.config.inputs import TextConfig
from transact.data import tokenised_text
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.text import documents
from transact.data.token_parts import Packing, Part, TextParts, document_hash
from transact.data.token_store import TokenStore
from transact.data.tokenised_files import token_files
from transact.data.tokenised_text import TokenisedParts, TokenisedText
from transact.data.tokenising import write_token_store
from transact.models.stock import load_tokenizer

EOS, BOS = 0, 512


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents of many lengths, in rows.jsonl; one holds the mark as characters."""
    folder = tmp_path_factory.mktemp("text")
    train, _ = write_text_files(folder)
    texts = [each for each in train.read_text().split("\n\n") if each.strip()][:400]
    texts[7] = "before <eos> behind"
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return folder


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> PreTrainedTokenizerFast:
    """With marks of both sides: LLaMA's tokenizers put bos before a text."""
    found = train_tokenizer(place / "train.txt")
    found.add_special_tokens({"bos_token": "<bos>"})
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return found


def texts_of(place: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (place / "rows.jsonl").read_text().splitlines()]


def tokenised(place: Path, tokenizer: Any) -> list[list[int]]:
    return [tokenizer(each, add_special_tokens=False)["input_ids"] for each in texts_of(place)]


def store_of(text: Any, folder: Path, tokenizer: Any, marks: DocumentMarks, **options: Any) -> TokenStore:
    packing = Packing(sequence_length=4, max_sequences=10**6, marks=marks, by_document=True)
    write_token_store(folder, text, tokenizer, packing, **options)
    return TokenStore(folder)


def read(files: list[Path], tokenizer: Any, marks: DocumentMarks) -> TokenisedText:
    config = TextConfig(source="tokens", files=list(map(str, files)), tokenizer="made/by")
    return TokenisedText(token_files(config, "data.train"), "data.train", tokenizer, marks)


def everything(store: TokenStore) -> list[int]:
    return store.sequences(torch.arange(store.num_sequences)).flatten().tolist()


def positions_of(store: TokenStore, every: torch.Tensor) -> torch.Tensor:
    """Where tokens are in their documents, which says where documents begin."""
    found = store.position_ids(every)
    assert found is not None
    return found


def as_dataset(folder: Path, found: list[list[int]]) -> Path:
    return write_indexed_dataset(folder / "x", found)


def with_end_of_document(folder: Path, found: list[list[int]]) -> Path:
    """As `--append-eod` of Megatron-LM writes it."""
    return write_indexed_dataset(folder / "x", [[*each, EOS] for each in found], letter="H")


def in_several_sequences(folder: Path, found: list[list[int]]) -> Path:
    halves = [half for each in found for half in (each[: len(each) // 2], each[len(each) // 2 :])]
    return write_indexed_dataset(folder / "x", halves, documents=range(0, len(halves) + 1, 2))


def as_stream(folder: Path, found: list[list[int]]) -> Path:
    numpy.save(folder / "x.npy", numpy.array([token for each in found for token in (*each, EOS)], dtype=numpy.uint16))
    return folder / "x.npy"


def as_stream_with_both_marks(folder: Path, found: list[list[int]]) -> Path:
    numpy.save(folder / "x.npy", numpy.array([token for each in found for token in (BOS, *each, EOS)]))
    return folder / "x.npy"


def as_stream_with_bos(folder: Path, found: list[list[int]]) -> Path:
    numpy.save(folder / "x.npy", numpy.array([token for each in found for token in (BOS, *each)]))
    return folder / "x.npy"


def as_packed_rows(folder: Path, found: list[list[int]]) -> Path:
    """Documents go on from row to row; the last row is filled up with the mark."""
    stream = [token for each in found for token in (*each, EOS)]
    numpy.save(folder / "x.npy", numpy.array(stream + [EOS] * (-len(stream) % 64)).reshape(-1, 64))
    return folder / "x.npy"


FORMS: dict[Callable[[Path, list[list[int]]], Path], str] = {  # and the marks that stand in the file
    as_dataset: "",
    in_several_sequences: "",
    with_end_of_document: "end",
    as_stream: "end",
    as_packed_rows: "end",
    as_stream_with_both_marks: "both",
    as_stream_with_bos: "begin",
}


@pytest.mark.parametrize("choice", ["both", "begin", "end"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_tokens_are_those_of_the_text(
    choice: str, form: Callable[..., Path], place: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Marks that the files have are not put there again. Only indexed datasets tell a mark within a document."""
    texts, found = texts_of(place), tokenised(place, tokenizer)
    if not form.__name__.startswith(("as_dataset", "in_several", "with_end")):
        del texts[7], found[7]
    hashes = set(map(document_hash, texts))
    if choice == "begin" and FORMS[form] in ("end", "both"):
        texts = [f"{each}<eos>" for each in texts]  # what stands in the file stays
    if choice == "end" and FORMS[form] in ("begin", "both"):
        texts = [f"<bos>{each}" for each in texts]
    marks = document_marks(tokenizer, choice)
    own = store_of(texts, tmp_path / "text", tokenizer, marks)
    other = store_of(read([form(tmp_path, found)], tokenizer, marks), tmp_path / "tokens", tokenizer, marks)
    assert everything(other) == everything(own)
    every = torch.arange(own.num_sequences)
    assert torch.equal(positions_of(other, every), positions_of(own, every))
    assert set(other.documents().tolist()) == hashes


def test_rows_without_marks_are_documents(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows = numpy.arange(300, 300 + 3 * 5).reshape(3, 5)
    numpy.save(tmp_path / "x.npy", rows)
    marks = document_marks(tokenizer, "both")
    store = store_of(read([tmp_path / "x.npy"], tokenizer, marks), tmp_path / "s", tokenizer, marks)
    assert everything(store) == [token for row in rows.tolist() for token in (BOS, *row, EOS)][:20]
    assert store.index["documents"] == 3


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_token_store_is_a_text_again(choice: str, place: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Its documents are found by its own marks, whatever marks are asked for now."""
    texts = texts_of(place)
    del texts[7]
    first = store_of(texts, tmp_path / "first", tokenizer, document_marks(tokenizer, "auto"))
    marks = document_marks(tokenizer, choice)
    again = store_of(read([tmp_path / "first"], tokenizer, marks), tmp_path / "again", tokenizer, marks)
    length = again.num_sequences * 4
    assert length > 10_000 and everything(again) == everything(first)[:length]
    assert len(numpy.setxor1d(first.documents(), again.documents())) <= 2  # the last was cut off


def test_a_token_store_of_documents_apart_says_where_they_begin(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Without marks too, which else would make one document of all."""
    none = document_marks(tokenizer, "none")
    first = store_of(texts_of(place), tmp_path / "first", tokenizer, none)
    again = store_of(read([tmp_path / "first"], tokenizer, none), tmp_path / "again", tokenizer, none)
    every = torch.arange(again.num_sequences)
    assert again.num_sequences == first.num_sequences and everything(again) == everything(first)
    assert torch.equal(positions_of(again, every), positions_of(first, every))


def test_tokens_that_do_not_tell_where_documents_end_are_refused(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    """As one document of the whole file nothing of it would be kept apart, and nothing held out."""
    numpy.save(tmp_path / "x.npy", numpy.array([token for each in tokenised(place, tokenizer)[:5] for token in each]))
    with pytest.raises(ValueError, match=r"nothing in '.*x.npy' tells where documents end"):
        read([tmp_path / "x.npy"], tokenizer, document_marks(tokenizer, "both"))


@pytest.mark.parametrize("place_of_mark", [1, 6, 7, 8, 40, 63])
def test_a_single_mark_anywhere_in_the_beginning_tells_where_documents_end(
    place_of_mark: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens, which may stand in two of the blocks that are looked at one after the other."""
    tokens = numpy.full(80, 5)
    tokens[place_of_mark : place_of_mark + 2] = 9, 11
    numpy.save(tmp_path / "x.npy", tokens)
    monkeypatch.setattr(tokenised_text, "LOOKED_AT_ONCE", 8)
    assert read([tmp_path / "x.npy"], tokenizer, DocumentMarks(begin=(9, 11))).num_tokens == 80


def test_held_out_documents_are_left_out(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A held-out text of words keeps documents out of tokens, and held-out tokens keep them out of a text."""
    texts, found, marks = texts_of(place), tokenised(place, tokenizer), document_marks(tokenizer, "auto")
    held, held_tokens = texts[5:25], write_indexed_dataset(tmp_path / "held", found[5:25])
    words = store_of(held, tmp_path / "words", tokenizer, marks)
    tokens = store_of(read([held_tokens], tokenizer, marks), tmp_path / "numbers", tokenizer, marks)
    assert words.documents().tolist() == tokens.documents().tolist()
    without = set(words.documents().tolist()) | set(range(30))
    whole = read([write_indexed_dataset(tmp_path / "x", found)], tokenizer, marks)
    left = store_of(whole, tmp_path / "left", tokenizer, marks, without=without)
    expected = store_of(texts, tmp_path / "expected", tokenizer, marks, without=without)
    assert everything(left) == everything(expected)
    assert left.index == expected.index and left.index["documents_left_out"] == 20


def test_documents_of_many_files_are_mixed_and_none_is_lost(
    place: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same documents as files of text give; parts are short here, and some documents longer than two of them."""
    monkeypatch.setattr(tokenised_text, "PART_TOKENS", 500)
    found = tokenised(place, tokenizer)
    numpy.save(tmp_path / "z.npy", numpy.array([token for each in found[:100] for token in (*each, EOS)]))
    files = [tmp_path / "z.npy", write_indexed_dataset(tmp_path / "x", found[100:200])]
    files.append(write_indexed_dataset(tmp_path / "y", found[200:]))
    text = read(files, tokenizer, DocumentMarks())
    mixed = [each.tokens.tolist() for each in text.documents()]
    whole = {tuple(each) for each in found} | {(*each, EOS) for each in found}
    assert sum(map(len, mixed)) == text.num_tokens == sum(map(len, found)) + 100
    cut = [each for each in mixed if tuple(each) not in whole]
    assert len(cut) <= 2 * sum(len(each) > 500 for each in found) + 1  # and <eos> as characters
    firsts = {tuple(each): number // 100 for number, each in enumerate(found)}
    first = Counter(firsts.get(tuple(each), firsts.get(tuple(each[:-1]))) for each in mixed[:60])
    assert {0, 1, 2, 3} <= set(first)  # the beginning is of all files


def test_every_process_makes_the_same_parts(
    place: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes over a part reads none of it."""
    monkeypatch.setattr(tokenised_text, "BATCH_TOKENS", 1000)
    found, marks = tokenised(place, tokenizer), document_marks(tokenizer, "auto")
    packing = Packing(sequence_length=4, max_sequences=10**6, marks=marks)
    text = read([write_indexed_dataset(tmp_path / "x", found)], tokenizer, marks)
    folders = [tmp_path / name for name in ("all", "odd", "even")]
    for folder in folders:
        folder.mkdir()
    every, odd, even = (TokenisedParts(text, tokenizer, packing) for _ in folders)
    parts = list[Part]()
    while (made := every.ensure(folders[0], len(parts))) is not None:
        parts.append(made[0])
    assert len(parts) > 10
    for number, part in enumerate(parts):
        own = (even, odd)[number % 2].ensure(folders[1 + number % 2], number)
        assert own is not None and all(numpy.array_equal(one, other) for one, other in zip(own[0], part, strict=True))
    tokens = numpy.concatenate([part.tokens for part in parts])
    (whole,) = _parts(TextParts(texts_of(place), tokenizer, packing), tmp_path)
    assert tokens.tolist() == whole.tokens.tolist()


def _parts(parts: TextParts, folder: Path) -> list[Part]:
    found = parts.ensure(folder, 0)
    assert found is not None and parts.ensure(folder, 1) is None
    return [found[0]]


@pytest.mark.parametrize(("token", "dtype"), [(513, "int32"), (-1, "int64"), (65_535, "uint16"), (2**40, "int64")])
def test_a_token_outside_the_vocabulary_is_refused(token: int, dtype: str, tokenizer: Any, tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", numpy.array([7, 8, EOS, 9, token, 5] * 10, dtype=dtype))
    text = read([tmp_path / "x.npy"], tokenizer, DocumentMarks())
    with pytest.raises(
        ValueError, match=f"x.npy' holds token {token} at position 4; the tokenizer has tokens 0 to 512"
    ):
        store_of(text, tmp_path / "s", tokenizer, DocumentMarks())
    assert not (tmp_path / "s").exists()


def test_memory_does_not_grow_with_the_file(tokenizer: Any, tmp_path: Path) -> None:
    """A file of 200 MB, of which a few sequences are asked for, and another that is looked through to its end."""
    tokens = numpy.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=numpy.int64, shape=(25_000_000,))
    tokens[:] = 80
    tokens[::999] = EOS
    tokens.flush()
    tracemalloc.start()
    text = read([tmp_path / "x.npy"], tokenizer, DocumentMarks(end=(EOS,)))
    write_token_store(tmp_path / "s", text, tokenizer, Packing(sequence_length=64, max_sequences=1000))
    assert sum(1 for _ in text.documents()) == 25_027
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_the_same_documents_as_from_a_file_of_text(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    """In its order too, where each is one part of one file."""
    config = TextConfig(source="files", files=[str(place / "rows.jsonl")])
    text = read([write_indexed_dataset(tmp_path / "x", tokenised(place, tokenizer))], tokenizer, DocumentMarks())
    pieces, _ = text.read(text.documents())
    assert [each.text for each in pieces] == list(documents(config, "data.train"))


def test_documents_of_a_sentencepiece_tokenizer_decode_to_their_text(place: Path, tmp_path: Path) -> None:
    """LLaMA 2's writes spaces as another character, and one before every text."""
    train_sentencepiece(tmp_path, place / "train.txt")
    tokenizer = load_tokenizer(write_model(tmp_path))
    texts = [*texts_of(place)[:50], "  two spaces before", "\ttab €☃ é", "a  b   c"]
    found = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in texts]
    marks = document_marks(tokenizer, "auto")
    own = store_of(texts, tmp_path / "text", tokenizer, marks)
    other = store_of(
        read([write_indexed_dataset(tmp_path / "x", found)], tokenizer, marks), tmp_path / "s", tokenizer, marks
    )
    assert marks.end
    assert everything(other) == everything(own) and other.documents().tolist() == own.documents().tolist()
