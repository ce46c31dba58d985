"""Text as tokens on disk: packed sequences of one length, written once, read by position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy
import torch

from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.token_parts import PART_FILE, PART_NAME, Packing, TextParts, part_path, read_seen_part, token_dtype
from transact.files import (
    TEMPORARY_SUFFIX,
    damage_of,
    file_digest,
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
Result = TypeVar("Result")


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
    _check_is_store(folder)
    for entry in list(os.scandir(folder)):
        os.unlink(entry.path)
    folder.rmdir()


def _check_is_store(folder: Path) -> None:
    """Raise ValueError if there is something else than a store, or what was finished of one."""
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


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is one of a store's files, or a link of that name: removing it leaves its target."""
    is_named_so = entry.name in FILE_NAMES or PART_NAME.fullmatch(entry.name) is not None
    return is_named_so and (entry.is_symlink() or entry.is_file())


def store_folder(root: Path, identity: dict[str, Any]) -> Path:
    """Return where the store of this text, tokenizer, length and size is, or will be."""
    text = json.dumps({"format": FORMAT_VERSION, **identity}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:20]


def tokenizer_digest(tokenizer: Any, marks: DocumentMarks | None = None) -> str:
    """Return a digest of all that tokens depend on; the marks of documents are not in tokenizer.json."""
    marks = marks or document_marks(tokenizer, "auto")
    added = json.dumps([marks.begin, marks.end])
    return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + added).encode()).hexdigest()


class Workers(Protocol):
    """The processes that tokenise together."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def on_all(self, work: Callable[[], Result], *, may_be_left: bool = False) -> list[Result]:
        """Do work in every process and return all results in the order of processes."""

    def on_main(self, work: Callable[[], Result], *, may_be_left: bool = False) -> Result:
        """Do work in the first process and return its result in every one."""


class Alone:
    """This process by itself, as `Workers`."""

    rank, world_size = 0, 1

    def on_all(self, work: Callable[[], Result], *, may_be_left: bool = False) -> list[Result]:
        return [work()]

    def on_main(self, work: Callable[[], Result], *, may_be_left: bool = False) -> Result:
        return work()


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How a text is tokenised; its tokens do not depend on it.

    Attributes:
        workers: the processes that tokenise.
        most_workers: how many of them read the text. None: all.
        keeps_parts: whether finished parts stay where the text cannot be read: another time it may be.
        progress: called whenever every process has finished a part, with the number of tokens that they add, and how
            many tokens were made for that.
    """

    workers: Workers = field(default_factory=Alone)
    most_workers: int | None = None
    keeps_parts: bool = False
    progress: Callable[[int, int], None] = lambda tokens, new: None


class Finished(NamedTuple):
    """What a process tells the others of a part.

    Attributes:
        tokens: that the part has.
        is_new: it was tokenised now, not found.
        left_out: hashes of held-out documents, and where in the part they would have been.
    """

    tokens: int
    is_new: bool
    left_out: list[tuple[int, int]]


class _Count:
    """The parts that are finished, in the order of their numbers, and what they hold up to the wanted tokens."""

    def __init__(self, wanted: int, without: Collection[int], name: str) -> None:
        self._wanted, self._without, self._name = wanted, without, name
        self.parts, self.tokens, self.left_out = 0, 0, set[int]()
        self.is_over = False

    def add(self, part: Finished | None) -> None:
        """Count the next part; None: the text has ended before it.

        Raises:
            ValueError: the text holds most of the held-out documents.
        """
        if part is None or self.is_over:
            self.is_over = True
            return
        self.left_out |= {each for each, start in part.left_out if self.tokens + start < self._wanted}
        if len(self.left_out) > len(self._without) * MOST:
            raise ValueError(
                f"{self._name} holds {len(self.left_out)} of the {len(self._without)} documents of data.evaluation "
                "word for word: they are not held out; name another text, or take these documents out of one of them"
            )
        self.parts += 1
        self.tokens = min(self.tokens + part.tokens, self._wanted)
        self.is_over = self.tokens == self._wanted


def write_token_store(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Any,
    packing: Packing,
    *,
    without: Collection[int] = (),
    name: str = "the text",
    course: Course | None = None,
) -> None:
    """Write a token store: tokenise until the text ends or all sequences are full (collective).

    What was tokenised before a kill is not tokenised again. A last piece that is too short for a sequence is left out.

    Args:
        documents: in the same order in every process.
        tokenizer: A fast tokenizer of transformers.
        without: Hashes of held-out documents, which are left out.
        name: The text's name, for messages.
        course: who tokenises, and who hears of it. None: this process alone.

    Raises:
        ValueError: the text does not fill one sequence, or holds most of the held-out documents. No files are left
            behind.
    """
    course = course or Course()
    workers = course.workers
    readers = min(workers.world_size, course.most_workers or workers.world_size)
    temporary, count = temporary_name(folder), _Count(packing.tokens, without, name)
    try:
        workers.on_main(lambda: _begin(folder))
        parts = TextParts(documents, tokenizer, packing, without)
        while not count.is_over:
            first, before = count.parts, count.tokens
            own = first + workers.rank if workers.rank < readers else None
            turn = workers.on_all(partial(_ensure, parts, temporary, own), may_be_left=True)[:readers]
            for part in turn:
                count.add(part)
            course.progress(
                count.tokens - before, sum(part.tokens for part in turn if part is not None and part.is_new)
            )
        workers.on_main(lambda: _join(folder, count, tokenizer, packing, name), may_be_left=True)
    except ValueError:
        if workers.rank == 0 and not course.keeps_parts:
            with suppress(OSError, ValueError):
                remove_store(temporary)
        raise


def _begin(folder: Path) -> None:
    """Make room for a store, and the folder that its parts are written to; finished parts in it stay."""
    remove_store(folder)
    temporary = temporary_name(folder)
    _check_is_store(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    for entry in list(os.scandir(temporary)):
        if not PART_FILE.fullmatch(entry.name) or entry.is_symlink():
            os.unlink(entry.path)


def _ensure(parts: TextParts, folder: Path, number: int | None) -> Finished | None:
    found = None if number is None else parts.ensure(folder, number)
    if found is None:
        return None
    part, is_new = found
    left_out = zip(part.left_out.tolist(), part.left_out_starts.tolist(), strict=True)
    return Finished(len(part.tokens), is_new, list(left_out))


def _join(folder: Path, count: _Count, tokenizer: Any, packing: Packing, name: str) -> None:
    """Make the store of its parts, and remove them."""
    temporary, length, wanted = temporary_name(folder), packing.sequence_length, packing.tokens
    num_sequences = count.tokens // length
    if num_sequences == 0:
        raise ValueError(f"{name} has {count.tokens} tokens, fewer than one sequence of {length}")
    largest, position = 0, 0
    hashes: list[Any] = []
    with (temporary / TOKENS_NAME).open("wb") as file:
        for number in range(count.parts):
            part = read_seen_part(part_path(temporary, number))
            whole = part.tokens[: max(0, num_sequences * length - position)]
            file.write(whole.data)  # `tofile` does not say that the disk is full
            largest = max(largest, int(whole.max(initial=0)))
            hashes.append(part.documents[part.starts < wanted - position])
            position += len(part.tokens)
    used = numpy.unique(numpy.concatenate(hashes))
    (temporary / DOCUMENTS_NAME).write_bytes(used.data)
    write_index(
        temporary,
        {
            "num_sequences": num_sequences,
            "sequence_length": length,
            "dtype": token_dtype(tokenizer).__name__,
            "is_whole_text": count.tokens < wanted,
            "largest_token": largest,
            "documents": len(used),
            "documents_left_out": len(count.left_out),
        },
    )
    for entry in list(os.scandir(temporary)):
        if PART_NAME.fullmatch(entry.name):
            os.unlink(entry.path)
    publish(temporary, folder)
