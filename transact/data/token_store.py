"""Text as tokens on disk: packed sequences of one length, written once, read by position."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from transact.files import fresh_temporary_folder, publish, read_json, write_json

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
TOKENS_NAME = "tokens.bin"
BATCH_CHARACTERS = 2_000_000  # tokenised at once: enough to keep every core busy


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
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def write_token_store(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Any,
    *,
    sequence_length: int,
    max_sequences: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Tokenise until the text ends or `max_sequences` are full; a last piece that is too short is left out.

    Args:
        tokenizer: A fast tokenizer of transformers.
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
            numpy.asarray(kept, dtype=dtype).tofile(file)
            written += len(kept)
            progress(len(kept))
            if written == wanted:
                break
        num_sequences = written // sequence_length
        file.truncate(num_sequences * sequence_length * numpy.dtype(dtype).itemsize)
    if num_sequences == 0:
        raise ValueError(f"the text has {written} tokens, fewer than one sequence of {sequence_length}")
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
    backend = tokenizer.backend_tokenizer
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for batch in _document_batches(documents):
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        yield [token for encoding in encodings for token in (*begin, *encoding.ids, *end)]


def _document_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
