"""Text as tokens on disk: packed sequences of one length, written once, read by position."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from transact.files import fresh_temporary_folder, publish, read_json, write_json

FORMAT_VERSION = 2
INDEX_NAME = "index.json"
TOKENS_NAME = "tokens.bin"
BATCH_CHARACTERS = 2_000_000  # tokenised at once: enough to keep every core busy
PIECE_CHARACTERS = 500_000  # of longer documents: a tokenizer takes up to 200 bytes of memory for each character


class TokenStore:
    """A finished store. Sequences are consecutive pieces of the text; each document ends with a mark."""

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / INDEX_NAME)
        self.name = folder.name  # a digest of what is in it
        self.num_sequences: int = index["num_sequences"]
        self.sequence_length: int = index["sequence_length"]
        self.is_whole_text: bool = index["is_whole_text"]
        shape = (self.num_sequences, self.sequence_length)
        self._tokens = numpy.memmap(folder / TOKENS_NAME, dtype=index["dtype"], mode="r", shape=shape)

    def sequences(self, positions: torch.Tensor) -> torch.Tensor:
        """positions: (sequences,) -> tokens: (sequences, sequence_length), int64."""
        return torch.from_numpy(self._tokens[positions.numpy()].astype(numpy.int64))


def store_folder(root: Path, identity: dict[str, Any]) -> Path:
    """Where the store of this text, tokenizer, length and size is, or will be."""
    text = json.dumps({"format": FORMAT_VERSION, **identity}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:20]


def tokenizer_digest(tokenizer: Any) -> str:
    """Of all that tokens depend on: the marks of documents stand outside of tokenizer.json."""
    marks = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id])
    return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + marks).encode()).hexdigest()


def write_token_store(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Any,
    *,
    sequence_length: int,
    max_sequences: int,
    name: str = "the text",
    progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Tokenise until the text ends or `max_sequences` are full; a last piece that is too short is left out.

    Args:
        tokenizer: A fast tokenizer of transformers.
        name: Of the text, for messages.
        progress: Told the number of tokens written after every batch.

    Raises:
        ValueError: the text does not fill one sequence.
    """
    dtype = numpy.uint16 if len(tokenizer) <= 2**16 else numpy.uint32
    wanted = sequence_length * max_sequences
    temporary = fresh_temporary_folder(folder)
    written = 0
    with (temporary / TOKENS_NAME).open("wb") as file:
        for tokens in _token_batches(documents, tokenizer):
            kept = tokens[: wanted - written]
            file.write(numpy.asarray(kept, dtype=dtype).data)  # `tofile` does not say that the disk is full
            written += len(kept)
            progress(len(kept))
            if written == wanted:
                break
        num_sequences = written // sequence_length
        file.truncate(num_sequences * sequence_length * numpy.dtype(dtype).itemsize)
    if num_sequences == 0:
        raise ValueError(f"{name} has {written} tokens, fewer than one sequence of {sequence_length}")
    write_json(
        temporary / INDEX_NAME,
        {
            "num_sequences": num_sequences,
            "sequence_length": sequence_length,
            "dtype": numpy.dtype(dtype).name,
            "is_whole_text": written < wanted,
        },
    )
    publish(temporary, folder)


def _token_batches(documents: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    for batch in _batches(piece for document in documents for piece in _pieces(document)):
        yield _tokens(batch, tokenizer)


def _tokens(batch: list[_Piece], tokenizer: Any) -> list[int]:
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = [piece.text for piece in batch]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    tokens: list[int] = []
    for piece, encoding in zip(batch, encodings, strict=True):
        tokens += begin if piece.is_first else []
        tokens += encoding.ids
        tokens += end if piece.is_last else []
    return tokens


class _Piece(NamedTuple):
    """A part of a document that is tokenised by itself."""

    text: str
    is_first: bool
    is_last: bool


def _pieces(document: str) -> Iterator[_Piece]:
    """The whole document, or pieces of a very long one, cut before white space where there is some."""
    start = 0
    while len(document) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        space = max(document.rfind(mark, start + PIECE_CHARACTERS // 2, stop) for mark in " \n")
        stop = stop if space < 0 else space
        yield _Piece(document[start:stop], start == 0, False)
        start = stop
    yield _Piece(document[start:], start == 0, True)


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
