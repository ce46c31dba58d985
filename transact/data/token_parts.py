"""A text as numbered parts: each tokenised by whichever process it falls to, with the same tokens always.

Where a part begins follows from the text alone. Every process reads the whole text, which is quick, and tokenises its
own parts. A finished part is a file, so that a tokenisation that was killed goes on behind it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy
from safetensors import SafetensorError
from safetensors.numpy import load, save

from transact.data.chat_template import ChatTemplate, Encoded
from transact.data.document_marks import DocumentMarks, document_marks
from transact.files import TEMPORARY_SUFFIX, DamagedFile, publish

BATCH_CHARACTERS = 1_000_000  # tokenised at once: enough to keep a few cores busy
PIECE_CHARACTERS = 500_000  # of a longer document at once: a tokenizer takes up to 200 bytes of memory per character
PART_FILE = re.compile(r"part_[0-9]{6}\.safetensors")
PART_NAME = re.compile(rf"{PART_FILE.pattern}(\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)})?")
MOST_BATCHES = 32  # of a part
SHARED_FOLDER_SECONDS = 30.0  # NFS remembers for a while that a name did not exist
PARTS_OF_A_SIZE = 32  # before parts have twice as many batches


def document_hash(document: str) -> int:
    """Return a hash of 64 bits, the same for a document with other white space around it."""
    return int.from_bytes(hashlib.blake2b(document.strip().encode(), digest_size=8).digest(), "little")


def num_batches(part: int) -> int:
    """Return how many batches a part has.

    One at the beginning, where no process may work for nothing when few tokens are wanted, and the last part of a short
    text keeps the others waiting; more of them later, so that a long text is thousands of files and not a million.
    """
    return int(min(2 ** (part // PARTS_OF_A_SIZE), MOST_BATCHES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How documents become sequences of one length.

    Attributes:
        sequence_length: tokens of each.
        max_sequences: all that are wanted.
        marks: around documents. None: the tokenizer's own.
        chat: renders documents that are conversations, with its marks. None: they are text.
        by_document: whether tokens attend to their own document alone; where documents begin is then stored.
    """

    sequence_length: int
    max_sequences: int
    marks: DocumentMarks | None = None
    chat: ChatTemplate | None = None
    by_document: bool = False

    @property
    def has_counted(self) -> bool:
        """Whether not every token counts for the loss."""
        return self.chat is not None and self.chat.answers

    @property
    def tokens(self) -> int:
        """Tokens of all sequences that are wanted."""
        return self.sequence_length * self.max_sequences


class Part(NamedTuple):
    """What a part holds. Positions count tokens from the beginning of the part.

    Attributes:
        tokens: (tokens,), in the dtype of the store.
        counted: (tokens,) uint8, 1 for each that counts for the loss; (0,) where all do.
        documents: (documents,) uint64, the hash of each document that begins in it.
        starts: (documents,) int64, the position of the document's first token.
        left_out: (documents,) uint64, the hash of each held-out document that was left out.
        left_out_starts: (documents,) int64, the position of the batch that it would have been in.
    """

    tokens: Any
    counted: Any
    documents: Any
    starts: Any
    left_out: Any
    left_out_starts: Any


def token_dtype(tokenizer: Any) -> type[numpy.unsignedinteger[Any]]:
    """Return the type that every token of a tokenizer fits in."""
    return numpy.uint16 if len(tokenizer) <= 2**16 else numpy.uint32


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:06d}.safetensors"


def write_part(path: Path, part: Part) -> None:
    """Write a finished part."""
    tensors = part._asdict()
    # A name of its own: a rank of an attempt that is over may still be at work on the same part.
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY_SUFFIX}")
    temporary.write_bytes(save(tensors | {"digest": _digest(tensors)}))
    publish(temporary, path)


def read_part(path: Path) -> Part | None:
    """Return a finished part; None where there is none, or it is not as it was written."""
    try:
        tensors = load(path.read_bytes())
        digest = tensors.pop("digest")
        return Part(**tensors) if numpy.array_equal(digest, _digest(tensors)) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def read_seen_part(path: Path) -> Part:
    """Return a part that another machine may have finished just now, as soon as the file system shows it here.

    Raises:
        DamagedFile: it is not there, or not as it was written.
    """
    deadline = time.monotonic() + SHARED_FOLDER_SECONDS
    while (part := read_part(path)) is None:
        if time.monotonic() > deadline:
            raise DamagedFile(path, "is not there as it was written a moment ago")
        time.sleep(0.5)
    return part


def _digest(tensors: dict[str, Any]) -> Any:
    digest = hashlib.sha256()
    for name in Part._fields:
        digest.update(memoryview(tensors[name]).cast("B") if tensors[name].size else b"")
        digest.update(f" {name} {tensors[name].size} ".encode())
    return numpy.frombuffer(digest.digest(), dtype=numpy.uint8)


@dataclass(slots=True)
class Piece:
    """A piece of a document, or all of it, that is tokenised by itself."""

    text: str
    document: int  # its hash
    is_first: bool
    is_last: bool


@dataclass(slots=True)
class Batch:
    """Pieces that are tokenised at once, and the hashes of the held-out documents that were left out among them."""

    pieces: list[Piece] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)


def batches(documents: Iterable[str], without: Collection[int], *, cut: bool = True) -> Iterator[Batch]:
    """Yield all documents as batches, without those whose hashes are in `without`. cut: very long ones, to pieces."""
    batch, characters = Batch(), 0
    for document in documents:
        number = document_hash(document)
        if number in without:
            batch.left_out.append(number)
            continue
        for piece in _pieces(document, number) if cut else [Piece(document, number, True, True)]:
            batch.pieces.append(piece)
            characters += len(piece.text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = Batch(), 0
    if batch.pieces or batch.left_out:
        yield batch


def _pieces(text: str, number: int) -> Iterator[Piece]:
    """Yield the whole document, or pieces of a very long one, cut before white space where there is some."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        space = max(text.rfind(mark, start + PIECE_CHARACTERS // 2, stop) for mark in " \n")
        stop = stop if space < 0 else space
        yield Piece(text[start:stop], number, start == 0, False)
        start = stop
    yield Piece(text[start:], number, start == 0, True)


class TextParts:
    """The parts of a text, taken in the order of their numbers; those in between are passed over.

    Args:
        documents: all of the text, in the same order in every process.
        tokenizer: A fast tokenizer of transformers.
        without: hashes of held-out documents, which are left out.
    """

    def __init__(
        self, documents: Iterable[str], tokenizer: Any, packing: Packing, without: Collection[int] = ()
    ) -> None:
        self._batches = batches(documents, without, cut=packing.chat is None)  # a conversation is rendered whole
        self._tokenizer = tokenizer
        self._marks = packing.marks or document_marks(tokenizer, "auto")
        self._chat, self._has_counted = packing.chat, packing.has_counted
        self._most = packing.tokens
        self._dtype = token_dtype(tokenizer)
        self._next = 0

    def ensure(self, folder: Path, number: int) -> tuple[Part, bool] | None:
        """Return a part, tokenised and written to the folder unless it is there; None where the text ends before it.

        Returns:
            The part, and whether it was tokenised now.
        """
        for passed in range(self._next, number):
            _exhaust(islice(self._batches, num_batches(passed)))
        self._next = number + 1
        own = islice(self._batches, num_batches(number))
        finished = read_part(part_path(folder, number))
        if finished is not None:
            return (finished, False) if _exhaust(own) else None
        part = self._tokenised(own)
        if part is None:
            return None
        write_part(part_path(folder, number), part)
        return part, True

    def _tokenised(self, own: Iterator[Batch]) -> Part | None:
        """Tokenise the batches of a part, and no more of them than fill a store by themselves."""
        tokens, counted = [numpy.empty(0, dtype=self._dtype)], [numpy.empty(0, dtype=numpy.uint8)]
        documents: list[tuple[int, int]] = []
        left_out: list[tuple[int, int]] = []
        written, is_empty = 0, True
        for batch in own:
            left_out += [(each, written) for each in batch.left_out]
            for piece, encoded in zip(batch.pieces, self._encoded(batch.pieces), strict=True):
                if piece.is_first:
                    documents.append((piece.document, written))
                tokens.append(numpy.asarray(encoded.tokens, dtype=self._dtype))
                counted.append(numpy.asarray(encoded.counted, dtype=numpy.uint8))
                written += len(encoded.tokens)
            is_empty = False
            if written >= self._most:
                break
        if is_empty:
            return None
        assert not self._has_counted or sum(map(len, counted)) == written
        return Part(numpy.concatenate(tokens), numpy.concatenate(counted), *_columns(documents), *_columns(left_out))

    def _encoded(self, pieces: list[Piece]) -> list[Encoded]:
        """Return the tokens of each piece, with the marks of its document."""
        texts = [piece.text for piece in pieces]
        if self._chat is not None:
            return self._chat.encode(texts)
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            Encoded(
                [
                    *(self._marks.begin if piece.is_first else ()),
                    *encoding.ids,
                    *(self._marks.end if piece.is_last else ()),
                ],
                [],
            )
            for piece, encoding in zip(pieces, encodings, strict=True)
        ]


def _exhaust(own: Iterator[Batch]) -> bool:
    """Pass over batches and return whether there were any."""
    return sum(1 for _ in own) > 0


def _columns(rows: list[tuple[int, int]]) -> tuple[Any, Any]:
    return (
        numpy.asarray([hashed for hashed, _ in rows], dtype=numpy.uint64),
        numpy.asarray([start for _, start in rows], dtype=numpy.int64),
    )
