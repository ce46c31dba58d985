"""Text as tokens on disk: packed sequences of one length, written once, read by position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from transact.data.document_marks import DocumentMarks, document_marks
from transact.files import (
    TEMPORARY_SUFFIX,
    damage_of,
    file_digest,
    fresh_temporary_folder,
    publish,
    read_json,
    temporary_name,
    write_json,
)

FORMAT_VERSION = 3
INDEX_NAME = "index.json"
TOKENS_NAME = "tokens.bin"
DOCUMENTS_NAME = "documents.bin"  # a hash of every document in it, sorted
FILE_NAMES = (INDEX_NAME, TOKENS_NAME, DOCUMENTS_NAME, INDEX_NAME + TEMPORARY_SUFFIX)
MOST = 0.5  # of the held-out documents may stand in the training text; with more, nothing is held out
BATCH_CHARACTERS = 2_000_000  # tokenised at once: enough to keep every core busy
PIECE_CHARACTERS = 500_000  # of a longer document at once: a tokenizer takes up to 200 bytes of memory per character


class TokenStore:
    """A finished store. Sequences are consecutive pieces of the text; documents are separated by marks."""

    def __init__(self, folder: Path) -> None:
        self.index = read_index(folder)
        self.folder = folder
        self.name = folder.name  # a digest of what it was made of
        self.num_sequences: int = self.index["num_sequences"]
        self.sequence_length: int = self.index["sequence_length"]
        self.is_whole_text: bool = self.index["is_whole_text"]
        self.largest_token: int = self.index["largest_token"]
        self.sha256: str = self.index["files"][TOKENS_NAME]["sha256"]
        shape = (self.num_sequences, self.sequence_length)
        self._tokens = numpy.memmap(folder / TOKENS_NAME, dtype=self.index["dtype"], mode="r", shape=shape)

    def sequences(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the tokens at positions (sequences,): (sequences, sequence_length), int64."""
        return torch.from_numpy(self._tokens[positions.numpy()].astype(numpy.int64))

    def documents(self) -> set[int]:
        """Return the hashes of all documents that the store holds a part of."""
        return set(numpy.fromfile(self.folder / DOCUMENTS_NAME, dtype=numpy.uint64).tolist())


def read_index(folder: Path) -> dict[str, Any]:
    """Return index.json of a store, whose files have the sizes that it says.

    Raises:
        ValueError: the index is not as it was written, or a file has another size.
        OSError: a file is missing.
    """
    index = read_json(folder / INDEX_NAME)
    if not isinstance(index, dict) or index.get("digest") != _index_digest(index):
        raise ValueError(f"{INDEX_NAME} is not what was written")
    for name, recorded in index["files"].items():
        size = (folder / name).stat().st_size
        if size != recorded["size"]:
            raise ValueError(f"{name} has {size} of {recorded['size']} bytes")
    return index


def store_damage(folder: Path, on_read: Callable[[], object] = lambda: None) -> str | None:
    """Return what is wrong with a store, in words, or None if every byte is as it was written.

    Reads all of it once.

    Args:
        on_read: as in `damage_of`.
    """
    try:
        index = read_index(folder)
    except (ValueError, OSError) as error:
        return str(error)
    for name, recorded in index["files"].items():
        problem = damage_of(folder / name, recorded, on_read)
        if problem is not None:
            return f"{name} {problem}"
    return None


def write_index(folder: Path, facts: dict[str, Any]) -> None:
    """Write index.json into a folder that holds the other files of a store."""
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in (TOKENS_NAME, DOCUMENTS_NAME)
    }
    index = facts | {"files": files}
    write_json(folder / INDEX_NAME, index | {"digest": _index_digest(index)})


def _index_digest(index: dict[str, Any]) -> str:
    facts = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_store(folder: Path) -> None:
    """Remove a store, damaged or half-written, and nothing that is not one.

    Raises:
        ValueError: the folder is not a store, or holds something else.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        foreign = ["a link" if folder.is_symlink() else "a file"]
    else:
        foreign = [repr(each.name) for each in os.scandir(folder) if not _is_ours(each)]
    if foreign:
        raise ValueError(
            f"data.token_store: {str(folder)!r} is no token store: it is or holds {foreign[0]}; move it away"
        )
    for entry in list(os.scandir(folder)):
        os.unlink(entry.path)
    folder.rmdir()


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is one of a store's files, or a link of that name: removing it leaves its target."""
    return entry.name in FILE_NAMES and (entry.is_symlink() or entry.is_file())


def store_folder(root: Path, identity: dict[str, Any]) -> Path:
    """Return where the store of this text, tokenizer, length and size is, or will be."""
    text = json.dumps({"format": FORMAT_VERSION, **identity}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:20]


def tokenizer_digest(tokenizer: Any, marks: DocumentMarks | None = None) -> str:
    """Return a digest of all that tokens depend on; the marks of documents are not in tokenizer.json."""
    marks = marks or document_marks(tokenizer, "auto")
    added = json.dumps([marks.begin, marks.end])
    return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + added).encode()).hexdigest()


def document_hash(document: str) -> int:
    """Return a hash of 64 bits, the same for a document with other white space around it."""
    return int.from_bytes(hashlib.blake2b(document.strip().encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How documents become sequences of one length.

    Attributes:
        sequence_length: tokens of each.
        max_sequences: all that are wanted.
        marks: around documents. None: the tokenizer's own.
    """

    sequence_length: int
    max_sequences: int
    marks: DocumentMarks | None = None


def write_token_store(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Any,
    packing: Packing,
    *,
    without: Collection[int] = (),
    name: str = "the text",
    progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Write a token store: tokenise until the text ends or all sequences are full.

    A last piece that is too short for a sequence is left out.

    Args:
        tokenizer: A fast tokenizer of transformers.
        without: Hashes of held-out documents, which are left out.
        name: The text's name, for messages.
        progress: Called after every batch with the number of tokens that were written.

    Raises:
        ValueError: the text does not fill one sequence, or holds most of the held-out documents. No files are left
            behind.
    """
    dtype = numpy.uint16 if len(tokenizer) <= 2**16 else numpy.uint32
    sequence_length = packing.sequence_length
    wanted = sequence_length * packing.max_sequences
    written, largest, rest = 0, 0, numpy.empty(0, dtype=dtype)
    used: set[int] = set()
    left_out: set[int] = set()
    with _made_whole(folder) as temporary:
        with (temporary / TOKENS_NAME).open("wb") as file:
            for batch in _token_batches(_kept(documents, without, left_out, name), tokenizer, packing.marks):
                kept = batch.tokens[: wanted - written]
                used.update(each for each, start in batch.documents if start < len(kept))
                rest = numpy.concatenate([rest, numpy.asarray(kept, dtype=dtype)])
                whole, rest = numpy.split(rest, [len(rest) // sequence_length * sequence_length])
                file.write(whole.data)  # `tofile` does not say that the disk is full
                largest = max(largest, int(whole.max(initial=0)))
                written += len(kept)
                progress(len(kept))
                if written == wanted:
                    break
        num_sequences = written // sequence_length
        if num_sequences == 0:
            raise ValueError(f"{name} has {written} tokens, fewer than one sequence of {sequence_length}")
        (temporary / DOCUMENTS_NAME).write_bytes(numpy.asarray(sorted(used), dtype=numpy.uint64).data)
        write_index(
            temporary,
            {
                "num_sequences": num_sequences,
                "sequence_length": sequence_length,
                "dtype": numpy.dtype(dtype).name,
                "is_whole_text": written < wanted,
                "largest_token": largest,
                "documents": len(used),
                "documents_left_out": len(left_out),
            },
        )


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the store; on an error it is removed, as a retry starts from nothing."""
    remove_store(folder)
    remove_store(temporary_name(folder))
    temporary = fresh_temporary_folder(folder)
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):
            remove_store(temporary)
        raise
    publish(temporary, folder)


def _kept(documents: Iterable[str], without: Collection[int], left_out: set[int], name: str) -> Iterator[_Document]:
    for text in documents:
        number = document_hash(text)
        if number not in without:
            yield _Document(text, number)
            continue
        left_out.add(number)
        if len(left_out) > len(without) * MOST:
            raise ValueError(
                f"{name} holds {len(left_out)} of the {len(without)} documents of data.evaluation word for word: they "
                "are not held out; name another text, or take these documents out of one of them"
            )


class _Document(NamedTuple):
    text: str
    hash: int


class _Batch(NamedTuple):
    tokens: list[int]
    documents: list[tuple[int, int]]  # hash, and the position of its first token


def _token_batches(documents: Iterable[_Document], tokenizer: Any, marks: DocumentMarks | None) -> Iterator[_Batch]:
    marks = marks or document_marks(tokenizer, "auto")
    for batch in _batches(piece for document in documents for piece in _pieces(document)):
        yield _tokens(batch, tokenizer, marks)


def _tokens(batch: list[_Piece], tokenizer: Any, marks: DocumentMarks) -> _Batch:
    texts = [piece.text for piece in batch]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    tokens: list[int] = []
    starts: list[tuple[int, int]] = []
    for piece, encoding in zip(batch, encodings, strict=True):
        starts.append((piece.document, len(tokens)))
        tokens += marks.begin if piece.is_first else ()
        tokens += encoding.ids
        tokens += marks.end if piece.is_last else ()
    return _Batch(tokens, starts)


class _Piece(NamedTuple):
    """A part of a document that is tokenised by itself."""

    text: str
    document: int  # its hash
    is_first: bool
    is_last: bool


def _pieces(document: _Document) -> Iterator[_Piece]:
    """Yield the whole document, or pieces of a very long one, cut before white space where there is some."""
    text, start = document.text, 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        space = max(text.rfind(mark, start + PIECE_CHARACTERS // 2, stop) for mark in " \n")
        stop = stop if space < 0 else space
        yield _Piece(text[start:stop], document.hash, start == 0, False)
        start = stop
    yield _Piece(text[start:], document.hash, start == 0, True)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
