"""The token stores of a run: found, or made by all ranks, then read by every rank."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from transact.config.inputs import TextConfig
from transact.data.chat_template import chat_template_of
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.rows import LeftOut
from transact.data.text import documents, text_identity
from transact.data.token_parts import Packing
from transact.data.token_store import (
    TokenStore,
    read_index,
    remove_store,
    store_damage,
    store_folder,
    tokenizer_digest,
)
from transact.data.tokenised_files import token_files
from transact.data.tokenised_text import TokenisedText
from transact.data.tokenising import Course, write_token_store
from transact.distributed.file_lock import exclusive
from transact.files import DIGEST_BLOCK_BYTES, TEMPORARY_SUFFIX
from transact.models.folder import geometry_of
from transact.models.stock import load_tokenizer
from transact.stages.job import Job
from transact.tracking.progress import Progress

LOCK_SUFFIX = ".lock"
LEFT_BEHIND = re.compile(r"[0-9a-f]{20}\.(tmp|lock)")  # names that only runs write
LEFT_SECONDS = 7 * 86_400.0  # a tokenisation that was killed may go on within that time
REMOTE_READERS = 8  # ranks that tokenise a text of the Hub or another store, since each reads all of it from there
SAID_SECONDS, SAID_SECONDS_OF_GPUS = 60.0, 1.0  # of tokenising that is worth a line
CHECKED_SILENTLY_BYTES = 2_000_000_000


def open_store(
    job: Job,
    setting: str,
    text: TextConfig,
    model_folder: Path,
    max_sequences: int,
    *,
    held_out: Set[int] = frozenset(),
) -> TokenStore:
    """Open a text as tokens; the ranks tokenise it if it is not tokenised yet (collective).

    Args:
        model_folder: whose tokenizer is used, and whose vocabulary the tokens must be of.
        held_out: hashes of documents that must not be in it.

    Raises:
        ValueError: the text cannot be read, or has tokens that the model does not know.
    """
    request = StoreRequest(job, setting, text, model_folder, max_sequences, held_out)
    with ExitStack() as locks:  # of rank 0
        found, folder, apart = job.group.on_main(lambda: request.find(locks), may_be_left=True)
        if found is None:
            request.make(apart)
            found = job.group.on_main(lambda: request.settle(folder, apart))
    job.check_seen("data.token_store", found)
    return TokenStore(found)


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A token store that the ranks find or make; the fields are the arguments of `open_store`."""

    job: Job
    setting: str
    text: TextConfig
    model_folder: Path
    max_sequences: int
    held_out: Set[int]

    def find(self, locks: ExitStack) -> tuple[Path | None, Path, Path]:
        """Return the folder of an undamaged store, if there is one, and both that it may have.

        The first serves every held-out text that shares no document with this text, the second this held-out text only.

        Args:
            locks: what keeps other runs from the store, to be held until it is settled. Of the runs that need the same
                text at the same time, one tokenises and the others wait for it.
        """
        folder, apart = self._folders()
        remove_leftovers(folder.parent)
        for path in (folder, apart):
            locks.enter_context(exclusive(path.with_suffix(LOCK_SUFFIX), remove=True))
        found = self._sound(apart) or self._without_held_out(self._sound(folder))
        if found is not None:
            self._check_vocabulary(read_index(found))
        return found, folder, apart

    def settle(self, folder: Path, apart: Path) -> Path:
        """Return the folder of a store that was made in `apart`, under the name that serves most runs."""
        found = apart
        if read_index(apart)["documents_left_out"] == 0:
            remove_store(folder)
            found = apart.rename(folder)
        self._check_vocabulary(read_index(found))
        return found

    def _folders(self) -> tuple[Path, Path]:
        data, tokenizer = self.job.config.data, load_tokenizer(self.model_folder)
        marks, is_chat = document_marks(tokenizer, data.document_marks), self.text.messages_field is not None
        identity = {
            "text": text_identity(self.text, self.setting),
            "tokenizer": tokenizer_digest(tokenizer, marks, is_chat=is_chat),
            "sequence_length": data.sequence_length,
            "max_sequences": self.max_sequences,
            **({} if data.packing == "stream" else {"packing": data.packing}),
        }
        root = Path(data.token_store)
        return store_folder(root, identity), store_folder(root, identity | {"without": sorted(self.held_out)})

    def _sound(self, folder: Path) -> Path | None:
        """Return the folder if it holds an undamaged store; remove a damaged one."""
        if not folder.is_dir():
            return None
        problem = self._damage(folder)
        if problem is None:
            return folder
        self.job.say(f"{self.setting}: the token store {str(folder)!r} is damaged and made again: {problem}")
        remove_store(folder)
        return None

    def _damage(self, folder: Path) -> str | None:
        """Read a store and return what is wrong with it; of a large one progress is shown."""
        sizes = 0
        with suppress(OSError):  # what has gone is told below
            sizes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        with ExitStack() as stack:
            on_read = self.job.group.watchdog.progress
            if sizes > CHECKED_SILENTLY_BYTES:
                bar = stack.enter_context(self.job.progress(f"check {self.setting}", sizes, "bytes"))
                on_read = partial(bar.advance, DIGEST_BLOCK_BYTES)
            return store_damage(folder, on_read)

    def _without_held_out(self, folder: Path | None) -> Path | None:
        """Return the folder if there is one and no held-out document is in its store."""
        held_out = numpy.fromiter(self.held_out, dtype=numpy.uint64)
        return None if folder is None or TokenStore(folder).holds(held_out).any() else folder

    def make(self, folder: Path) -> None:
        """Tokenise the text on all ranks (collective)."""
        job, left_out, length = self.job, LeftOut(), self.job.config.data.sequence_length
        tokenizer = load_tokenizer(self.model_folder)
        marks = document_marks(tokenizer, job.config.data.document_marks)
        packing = Packing(
            sequence_length=length,
            max_sequences=self.max_sequences,
            marks=marks,
            chat=chat_template_of(self.text, self.setting, tokenizer, marks),
            by_document=job.config.data.packing == "documents",
        )
        self._check_same_text()
        source = self._source(tokenizer, marks, left_out)
        with job.progress(f"tokenise {self.setting}", packing.tokens, in_step=False) as progress:
            cost = _Cost(job, self.setting, packing.tokens, progress)
            write_token_store(
                folder,
                source,
                tokenizer,
                packing,
                without=self.held_out,
                name=self.setting,
                course=Course(
                    workers=job.group,
                    most_workers=REMOTE_READERS if self.text.is_remote else None,
                    keeps_parts=self.text.is_remote,
                    progress=cost.advance,
                ),
            )
        # Ranks may stop before the end.
        rows, first = max(job.group.gather((left_out.rows, left_out.first or "")))
        filtered = max(job.group.gather(left_out.filtered))
        if job.group.is_main:
            around = (packing.marks or DocumentMarks()).describe(tokenizer) or "no marks around it"
            rendered = "" if packing.chat is None else ", as its chat template renders it,"
            job.say(f"{self.setting}: each document{rendered} is stored with {around} (data.document_marks)")
            if filtered:
                job.say(f"{self.setting}: {filtered:,} documents are left out by {self.text.filter}")
            if rows:
                job.say(f"{self.setting}: {rows:,} rows have no text and are left out, the first: {first}")
            self._say_what_counts(folder)

    def _source(self, tokenizer: Any, marks: DocumentMarks, left_out: LeftOut) -> Iterator[str] | TokenisedText:
        """Open the text (collective). Rank 0 reads token stores among its files once, to see that they are whole.

        Raises:
            ValueError: one is not.
        """
        if self.text.source != "tokens":
            return documents(self.text, self.setting, left_out)
        files = token_files(self.text, self.setting)

        def check() -> None:
            for folder in filter(None, (each.store for each in files)):
                problem = self._damage(folder)
                if problem is not None:
                    raise ValueError(f"{self.setting}.files: the token store {str(folder)!r} is damaged: {problem}")

        self.job.group.on_main(check, may_be_left=True)
        return TokenisedText(files, self.setting, tokenizer, marks)

    def _check_same_text(self) -> None:
        """Raise ValueError unless every rank sees the same files with the same sizes (collective)."""

        def look() -> tuple[str, str]:
            identity = text_identity(self.text, self.setting)
            seen = [each[:2] for each in identity.get("files", [])], identity.get("filter")
            return socket.gethostname(), hashlib.sha256(json.dumps(seen).encode()).hexdigest()

        (main, seen), *others = self.job.group.everywhere(look)
        other = next((host for host, view in others if view != seen), None)
        if other is not None:
            raise ValueError(
                f"{self.setting}: host {other} has files of other names or sizes, or another filter, than host {main}: "
                "all ranks read them"
            )

    def _say_what_counts(self, folder: Path) -> None:
        index = read_index(folder)
        shared, counted = index["documents_left_out"], index.get("counted_tokens")
        if counted is not None:
            share = counted / (index["num_sequences"] * index["sequence_length"])
            self.job.say(f"{self.setting}: {counted:,} of its tokens ({share:.0%}) are of answers and have a loss")
        if shared:
            self.job.say(
                f"{self.setting}: {shared} documents of data.evaluation stand in it too and are not trained on"
            )

    def _check_vocabulary(self, index: dict[str, Any]) -> None:
        known = geometry_of(self.model_folder).vocab_size
        if index["largest_token"] >= known:
            raise ValueError(
                f"{self.setting}: the tokenizer in {str(self.model_folder)!r} makes token {index['largest_token']}, "
                f"the model has tokens 0 to {known - 1} (vocab_size={known}): they do not belong together"
            )


class _Cost:
    """What tokenising costs a job that has other work to do: said once, when the first part is done.

    Args:
        tokens: that are wanted; the text may have fewer.
    """

    def __init__(self, job: Job, setting: str, tokens: int, progress: Progress) -> None:
        self._job, self._setting, self._left, self._progress = job, setting, tokens, progress
        self._since, self._is_said = time.monotonic(), job.config.mode == "tokenize"

    def advance(self, tokens: int, new: int) -> None:
        """Count tokens of which some were made since the last call."""
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self._left -= tokens
        self._progress.advance(tokens)
        if new and not self._is_said:
            self._is_said = True
            is_gpu = self._job.group.device.type == "cuda"
            words = cost_words(self._left, self._left * seconds / new, is_gpu=is_gpu)
            if words is not None:
                self._job.say(f"{self._setting}: {words}")


def cost_words(tokens: int, seconds: float, *, is_gpu: bool) -> str | None:
    """Return what is said of tokens that a job still has to make; None where it takes no time worth a line.

    tokens: at most, as the text may have fewer. is_gpu: whether the job's GPUs wait for them.
    """
    if seconds < (SAID_SECONDS_OF_GPUS if is_gpu else SAID_SECONDS):
        return None
    waiting = " while its GPUs wait" if is_gpu else ""
    return (
        f"this job still has to make up to {tokens:,} tokens, in about {seconds:,.0f} s{waiting}; mode=tokenize does "
        "this on CPUs beforehand"
    )


def remove_leftovers(root: Path) -> None:
    """Remove the half-written stores of tokenisations that were killed, and locks that nobody holds; nothing else."""
    names = {path.stem for path in root.glob("*") if LEFT_BEHIND.fullmatch(path.name)}
    for name in sorted(names):
        half_written = root / f"{name}{TEMPORARY_SUFFIX}"
        with exclusive(root / f"{name}{LOCK_SUFFIX}", wait=False, remove=True) as held:
            if held and half_written.is_dir() and _is_old(half_written):
                remove_store(half_written)


def _is_old(folder: Path) -> bool:
    """Return whether nothing was written to a folder for a while.

    Where the file system has no locks, nothing else shows that a process is still at work.
    """
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time() - newest > LEFT_SECONDS
