"""A text that is tokenised already, as documents and as the parts of a token store.

Documents end where their file says so; where it does not, behind or before the marks of documents that stand in it. So
they are packed, held out and mixed as those of any other text.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from transact.data.chat_template import Encoded
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.local_files import in_hashed_order
from transact.data.rows import has_words
from transact.data.token_parts import Batch, Packing, Part, Piece, TextParts, document_hash
from transact.data.tokenised_files import TokenFile
from transact.errors import Refusal

PART_TOKENS = 1 << 20  # of a file in one part; a document without an end within one is cut
BATCH_TOKENS = 250_000  # decoded at once
LOOKED_AT_ONCE = 1 << 14  # tokens, for the first mark
ROWS_LOOKED_AT = 1000  # for a mark inside, which tells rows of packed documents from rows that are documents

Marks = Collection[tuple[int, ...]]


class TokenDocument(NamedTuple):
    """A document, where it is, and its tokens (tokens,)."""

    path: Path
    start: int
    tokens: Any


@dataclass(slots=True)
class TokenPiece(Piece):
    """A document with its tokens; `text` is what they mean."""

    tokens: list[int]


@dataclass(slots=True)
class TokenBatch(Batch):
    """Documents that are read at once; `pieces` are made where they are needed."""

    documents: list[TokenDocument] = field(default_factory=list)


class TokenisedText:
    """The documents of some files of tokens.

    Args:
        files: as of `token_files`.
        setting: that names the text, for messages.
        tokenizer: the fast tokenizer of transformers that made them.
        marks: that are put around documents, where they are not there already.

    Raises:
        ValueError: nothing tells where the documents of a file end.
    """

    def __init__(self, files: Sequence[TokenFile], setting: str, tokenizer: Any, marks: DocumentMarks) -> None:
        self._files, self._setting = files, setting
        self._tokenizer, self._marks = tokenizer, marks
        self._special = frozenset(tokenizer.all_special_ids)
        own = document_marks(tokenizer, "auto")  # which separate documents in a text that is given no marks
        before, behind = ({each for each in pair if each} for pair in ((marks.begin, own.begin), (marks.end, own.end)))
        self._begins = [_Begins(each, before, behind) for each in self._files]
        for file, begins in zip(self._files, self._begins, strict=True):
            if not begins.are_told:
                raise Refusal(
                    f"{setting}.files: nothing in {str(file.path)!r} tells where documents end: its first "
                    f"{min(len(file.tokens), PART_TOKENS):,} tokens hold no mark of documents of the tokenizer; write "
                    "it as an indexed dataset, or as an array with a document in each row"
                )

    @property
    def num_tokens(self) -> int:
        return sum(len(each.tokens) for each in self._files)

    def documents(self) -> Iterator[TokenDocument]:
        """Yield every document once, in a fixed order that mixes all files and places; their tokens are not read."""
        paths = [each.path for each in self._files]
        return in_hashed_order(paths, [-(-len(each.tokens) // PART_TOKENS) for each in self._files], self._part)

    def _part(self, file: int, number: int) -> Iterator[TokenDocument]:
        """Yield the documents of one range of tokens, which begins and ends at a document where there is one."""
        start, stop = (self._cut(file, place * PART_TOKENS) for place in (number, number + 1))
        found, tokens = self._files[file], self._files[file].tokens
        places = numpy.union1d(self._begins[file].within(start, stop), (start, stop)).tolist()
        for first, last in itertools.pairwise(places):
            yield TokenDocument(found.path, first, tokens[first:last])

    def _cut(self, file: int, place: int) -> int:
        """Return where the part planned at a place begins: at the next document, if one begins within a part."""
        size = len(self._files[file].tokens)
        if not 0 < place < size:
            return min(place, size)
        found = self._begins[file].within(place, min(place + PART_TOKENS, size))
        return int(found[0]) if len(found) else place

    def read(
        self, documents: Iterable[TokenDocument], without: Collection[int] = ()
    ) -> tuple[list[TokenPiece], list[int]]:
        """Return documents without those that have no words, and the hashes of those in `without`, left out too.

        A document is hashed over the text that its tokens mean, without special tokens around it: it is the same
        document as in a file of text, unless its tokenizer changes text.

        Raises:
            ValueError: a token is outside the tokenizer's vocabulary.
        """
        read = [(self._checked(each), each) for each in documents]
        texts = self._tokenizer.backend_tokenizer.decode_batch(
            [self._without_special(tokens) for tokens, _ in read], skip_special_tokens=False
        )
        pieces, left_out = list[TokenPiece](), list[int]()
        for text, (tokens, _) in zip(texts, read, strict=True):
            number = document_hash(text)
            if number in without:
                left_out.append(number)
            elif has_words(text):
                pieces.append(TokenPiece(text, number, True, True, self._marked(tokens)))
        return pieces, left_out

    def _checked(self, document: TokenDocument) -> list[int]:
        tokens, known = document.tokens, len(self._tokenizer)
        if tokens.min() < 0 or tokens.max() >= known:
            place = int(numpy.flatnonzero((tokens < 0) | (tokens >= known))[0])
            raise Refusal(
                f"{self._setting}.files: {str(document.path)!r} holds token {tokens[place]} at position "
                f"{document.start + place:,}; the tokenizer has tokens 0 to {known - 1}"
            )
        return tokens.tolist()  # type: ignore[no-any-return]

    def _without_special(self, tokens: list[int]) -> list[int]:
        start, stop = 0, len(tokens)
        while start < stop and tokens[start] in self._special:
            start += 1
        while start < stop and tokens[stop - 1] in self._special:
            stop -= 1
        return tokens[start:stop]

    def _marked(self, tokens: list[int]) -> list[int]:
        begin, end = list(self._marks.begin), list(self._marks.end)
        has_begin, has_end = tokens[: len(begin)] == begin, not end or tokens[-len(end) :] == end
        return [*([] if has_begin else begin), *tokens, *([] if has_end else end)]


class TokenisedParts(TextParts):
    """The parts of a text that is tokenised already, as `TextParts`; each process decodes its own alone."""

    def __init__(self, text: TokenisedText, tokenizer: Any, packing: Packing, without: Collection[int] = ()) -> None:
        super().__init__((), tokenizer, packing)
        self._text, self._without = text, without
        self._batches = _batches(text.documents())

    def _tokenised(self, own: Iterator[Any]) -> Part | None:
        read = (self._text.read(each.documents, self._without) for each in own)
        return super()._tokenised(Batch([*pieces], left_out) for pieces, left_out in read)

    def _encoded(self, pieces: list[Piece]) -> list[Encoded]:
        return [Encoded(each.tokens, []) for each in pieces if isinstance(each, TokenPiece)]


def _batches(documents: Iterator[TokenDocument]) -> Iterator[TokenBatch]:
    batch, tokens = TokenBatch(), 0
    for document in documents:
        batch.documents.append(document)
        tokens += len(document.tokens)
        if tokens >= BATCH_TOKENS:
            yield batch
            batch, tokens = TokenBatch(), 0
    if batch.documents:
        yield batch


class _Begins:
    """Where documents begin in a file of tokens.

    Args:
        before, behind: marks that documents begin with, and end with.
    """

    def __init__(self, file: TokenFile, before: Marks, behind: Marks) -> None:
        self._file, self._tokens = file, file.tokens
        self._before, self._behind = before, behind
        self._row_length: int | None = None
        if file.row_length is not None:
            begins = self.within(0, min(ROWS_LOOKED_AT * file.row_length, len(self._tokens)))
            if not (begins % file.row_length).any():
                self._row_length = file.row_length

    @property
    def are_told(self) -> bool:
        """Whether the file says where documents end, or a mark stands in its beginning."""
        if self._file.ends is not None or self._row_length is not None:
            return True
        end = min(PART_TOKENS, len(self._tokens)) + 1
        blocks = ((start, min(start + LOOKED_AT_ONCE, end)) for start in range(1, end, LOOKED_AT_ONCE))
        return any(len(self.within(*block)) for block in blocks)

    @cached_property
    def _ends(self) -> Any:
        return None if self._file.ends is None else self._file.ends()

    def within(self, start: int, stop: int) -> Any:
        """Return the positions in [start, stop), sorted: (documents,) int64."""
        length = self._row_length
        if length is not None:
            return numpy.arange(-(-start // length) * length, stop, length)
        if self._ends is not None:
            return numpy.unique(self._ends[slice(*numpy.searchsorted(self._ends, (start, stop)))])
        found = [_places(self._tokens, mark, start, stop) for mark in self._before]
        found += [_places(self._tokens, mark, start - len(mark), stop - len(mark)) + len(mark) for mark in self._behind]
        return numpy.unique(numpy.concatenate([numpy.empty(0, dtype=numpy.int64), *found]))


def _places(tokens: Any, mark: tuple[int, ...], start: int, stop: int) -> Any:
    """Return the positions in [start, stop) at which a mark begins."""
    start = max(start, 0)
    window = tokens[start : max(stop + len(mark) - 1, 0)]
    count = max(len(window) - len(mark) + 1, 0)
    found = numpy.ones(count, dtype=bool)
    for place, token in enumerate(mark):
        found &= window[place : place + count] == token
    return start + numpy.flatnonzero(found)
