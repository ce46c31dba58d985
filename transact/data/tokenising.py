"""Tokenising a text to a store: by one process or many, with the same bits always, going on after a kill.

No process waits for another: whoever is free claims the next part, and tells the others what it holds. The parts are
joined once they are all there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import uuid4

import numpy

from transact.data.document_marks import DocumentMarks
from transact.data.token_parts import (
    PART_FILE,
    PART_NAME,
    Packing,
    TextParts,
    num_batches,
    part_path,
    read_seen_part,
    token_dtype,
)
from transact.data.token_store import (
    COUNTED_NAME,
    DOCUMENTS_NAME,
    STARTS_NAME,
    TOKENS_NAME,
    check_is_store,
    remove_store,
    store_damage,
    tokenizer_digest,
    write_index,
)
from transact.data.tokenised_text import TokenisedParts, TokenisedText
from transact.distributed.rendezvous import store_of_one
from transact.files import DamagedFile, flush_to_disk, publish, temporary_name

MOST = 0.5  # of the held-out documents may stand in the training text; with more, nothing is held out
POLL_SECONDS, MOST_POLL_SECONDS = 0.02, 0.5  # between looks at what the other processes have finished
Result = TypeVar("Result")


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

    def board(self, name: str) -> Any:
        """Return a `torch.distributed.Store` that the processes share under this name."""


class Alone:
    """This process by itself, as `Workers`."""

    rank, world_size = 0, 1

    def on_all(self, work: Callable[[], Result], *, may_be_left: bool = False) -> list[Result]:
        return [work()]

    def on_main(self, work: Callable[[], Result], *, may_be_left: bool = False) -> Result:
        return work()

    def board(self, name: str) -> Any:
        return store_of_one()


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How a text is tokenised; its tokens do not depend on it.

    Attributes:
        workers: the processes that tokenise.
        most_workers: how many of them read the text. None: all.
        keeps_parts: whether finished parts stay where the text cannot be read: another time it may be.
        progress: called when parts are finished, and not before there is one for each process, with the number of
            tokens that they add, and how many tokens were made for that.
    """

    workers: Workers = field(default_factory=Alone)
    most_workers: int | None = None
    keeps_parts: bool = False
    progress: Callable[[int, int], None] = lambda tokens, new: None

    @property
    def readers(self) -> int:
        """How many processes tokenise."""
        return min(self.workers.world_size, self.most_workers or self.workers.world_size)


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
        self._batches = 0  # of these parts
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
        self._batches += num_batches(self.parts)
        self.parts += 1
        self.tokens = min(self.tokens + part.tokens, self._wanted)
        self.is_over = self.tokens == self._wanted

    def needs_more(self, claimed: int, workers: int) -> bool:
        """Return whether more parts are needed than those that are finished or claimed, as far as can be told.

        Those at work are taken to have as many tokens a batch as the finished ones; where there is none yet, each
        process may have one.
        """
        if self._batches == 0:
            return claimed < workers
        at_work = sum(num_batches(number) for number in range(self.parts, claimed))
        return self.tokens * (1 + at_work / self._batches) < self._wanted


class _Tokenising:
    """One process's part in the work: it claims parts until the text has ended or enough tokens are made.

    Args:
        parts: the text.
        folder: of the finished parts.
        board: shared by the processes that tokenise this text now, and by no others.
        count: of the parts that are finished, whoever made them; complete when the work ends.
        course: who tokenises.
    """

    def __init__(self, parts: TextParts, folder: Path, board: Any, count: _Count, course: Course) -> None:
        self._parts, self._folder, self._board, self._count, self._course = parts, folder, board, count, course
        self._has_ended = False  # the text, as far as this process knows
        self._told, self._new = 0, 0  # tokens that `progress` knows of, and those that it does not know were made

    def work(self) -> None:
        """Make parts until the count is complete, or another process has failed."""
        if self._course.workers.rank >= self._course.readers:
            return
        try:
            while (number := self._next()) is not None:
                found = self._made(number)
                self._has_ended = found is None
                self._board.set(f"part/{number}", json.dumps(found))
        except BaseException:
            self._board.set("failed", "")  # the others would wait for the part that was claimed
            raise

    def _next(self) -> int | None:
        """Claim the next part, once it is known to be needed; None when there is no more to do."""
        pause = POLL_SECONDS
        while True:
            self._look()
            if self._count.is_over or self._board.check(["failed"]):
                return None
            claimed = self._board.add("claimed", 0)
            if not self._has_ended and self._count.needs_more(claimed, self._course.readers):
                return int(self._board.add("claimed", 1)) - 1
            time.sleep(pause)
            pause = min(2 * pause, MOST_POLL_SECONDS)

    def _look(self) -> None:
        """Count the parts that are finished, in their order."""
        while not self._count.is_over and self._board.check([f"part/{self._count.parts}"]):
            found = json.loads(self._board.get(f"part/{self._count.parts}"))
            part = None if found is None else Finished(*found)
            self._count.add(part)
            if part is not None and part.is_new:
                self._new += part.tokens
        if self._count.tokens > self._told and (self._count.parts >= self._course.readers or self._count.is_over):
            told, new, self._told, self._new = self._told, self._new, self._count.tokens, 0
            self._course.progress(self._count.tokens - told, new)

    def _made(self, number: int) -> Finished | None:
        found = self._parts.ensure(self._folder, number)
        if found is None:
            return None
        part, is_new = found
        left_out = zip(part.left_out.tolist(), part.left_out_starts.tolist(), strict=True)
        return Finished(len(part.tokens), is_new, list(left_out))


def write_token_store(
    folder: Path,
    documents: Iterable[str] | TokenisedText,
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
        documents: in the same order in every process; or a text that is tokenised already.
        tokenizer: A fast tokenizer of transformers.
        without: Hashes of held-out documents, which are left out.
        name: The text's name, for messages.
        course: who tokenises, and who hears of it. None: this process alone.

    Raises:
        ValueError: the text does not fill one sequence, or holds most of the held-out documents. No files are left
            behind.
    """
    course = course or Course()
    workers, temporary = course.workers, temporary_name(folder)
    try:
        is_joined, name_of_board = workers.on_main(lambda: (_begin(folder), uuid4().hex), may_be_left=True)
        if not is_joined:
            count = _Count(packing.tokens, without, name)
            parts = (
                TokenisedParts(documents, tokenizer, packing, without)
                if isinstance(documents, TokenisedText)
                else TextParts(documents, tokenizer, packing, without)
            )
            tokenising = _Tokenising(parts, temporary, workers.board(name_of_board), count, course)
            workers.on_all(tokenising.work, may_be_left=True)
            workers.on_main(lambda: _join(temporary, count, tokenizer, packing, name), may_be_left=True)
        workers.on_main(lambda: _finish(folder))  # not left: another run may wait for the store
    except DamagedFile:  # of a part, which a file system may show late: all others are good
        raise
    except ValueError:
        if workers.rank == 0 and not course.keeps_parts:
            with suppress(OSError, ValueError):
                remove_store(temporary)
        raise


def _begin(folder: Path) -> bool:
    """Make room for a store, and the folder that its parts are written to; finished parts in it stay.

    Returns:
        Whether the parts were joined already, by a process that was killed before it gave the store its name.
    """
    remove_store(folder)
    temporary = temporary_name(folder)
    check_is_store(temporary)
    if store_damage(temporary) is None:
        return True
    temporary.mkdir(parents=True, exist_ok=True)
    for entry in list(os.scandir(temporary)):
        if not PART_FILE.fullmatch(entry.name) or entry.is_symlink():
            os.unlink(entry.path)
    return False


def _join(temporary: Path, count: _Count, tokenizer: Any, packing: Packing, name: str) -> None:
    """Make the files of a store of its parts, which stay until all of it is on the disk; the index comes last."""
    length, wanted = packing.sequence_length, packing.tokens
    num_sequences = count.tokens // length
    if num_sequences == 0:
        raise ValueError(f"{name} has {count.tokens} tokens, fewer than one sequence of {length}")
    largest, position, targets = 0, 0, 0
    hashes: list[Any] = []
    marked = [(COUNTED_NAME, packing.has_counted), (STARTS_NAME, packing.by_document)]
    names = [TOKENS_NAME, *(each for each, is_needed in marked if is_needed)]
    with ExitStack() as stack:
        files = {each: stack.enter_context((temporary / each).open("wb")) for each in names}
        for number in range(count.parts):
            part = read_seen_part(part_path(temporary, number))
            left = max(0, num_sequences * length - position)
            whole, counted = part.tokens[:left], part.counted[:left]
            begins = numpy.zeros(len(whole), dtype=numpy.uint8)
            begins[part.starts[part.starts < len(whole)]] = 1
            of_files = {TOKENS_NAME: whole, COUNTED_NAME: counted, STARTS_NAME: begins}
            for each, file in files.items():
                file.write(of_files[each].data)  # `tofile` does not say that the disk is full
            targets += int(counted.sum())
            largest = max(largest, int(whole.max(initial=0)))
            hashes.append(part.documents[part.starts < wanted - position])
            position += len(part.tokens)
    used = numpy.unique(numpy.concatenate(hashes))
    (temporary / DOCUMENTS_NAME).write_bytes(used.data)
    if packing.has_counted and targets == 0:
        raise ValueError(f"{name}: loss='answers' is not allowed: none of its conversations has an answer")
    names.append(DOCUMENTS_NAME)
    for file_name in names:
        flush_to_disk(temporary / file_name)
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
            "tokenizer": tokenizer_digest(tokenizer, DocumentMarks()),  # where its tokens are read as a text of others
            **({} if packing.chat is None else {"is_chat": True}),
            **({"counted_tokens": targets} if packing.has_counted else {}),
        },
        names,
    )


def _finish(folder: Path) -> None:
    """Remove the parts of a store that they were joined to, and give it its name."""
    temporary = temporary_name(folder)
    for entry in list(os.scandir(temporary)):
        if PART_NAME.fullmatch(entry.name):
            os.unlink(entry.path)
    publish(temporary, folder)
