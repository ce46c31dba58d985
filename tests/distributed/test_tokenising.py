"""A text tokenised by several ranks: the bits of one process, whatever is killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks
from transact.data import token_parts, tokenising
from transact.data.chat_template import ChatTemplate
from transact.data.document_marks import DocumentMarks
from transact.data.token_parts import Packing, document_hash
from transact.data.token_store import COUNTED_NAME, DOCUMENTS_NAME, TOKENS_NAME, TokenStore
from transact.data.tokenising import Course, write_token_store
from transact.models.stock import load_tokenizer

LENGTH = 16
BATCH = 4000  # characters
KILLS = 6
ALL = 100_000  # sequences, more than there are


def texts() -> list[str]:
    chosen = random.Random(0)
    words = [f"{chosen.choice(['plain', 'naïve', 'def', 'return'])} {number}" for number in range(400)]
    return [" ".join(chosen.sample(words, chosen.randrange(1, 300))) for _ in range(250)]


HELD_OUT = {document_hash(each) for each in texts()[::10]} | set(range(50))


def store_on_ranks(folder: Path, model: Path, most: int, kill_after: float | None = None) -> Any:
    """Tokenise on real ranks; the parts are a 500th of their usual size. Returns the store's folder."""
    from transact.distributed.process import process_group

    token_parts.BATCH_CHARACTERS = BATCH
    packing = Packing(sequence_length=LENGTH, max_sequences=most)
    with process_group("cpu", 5) as group:
        if kill_after is not None and group.rank == group.world_size - 1:
            threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        write_token_store(
            folder, texts(), load_tokenizer(model), packing, without=HELD_OUT, course=Course(workers=group)
        )
    return bytes_of(folder)


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def tokens_of(store: TokenStore) -> Any:
    return store.sequences(torch.arange(store.num_sequences)).numpy()


def expected(model: Path, most: int) -> tuple[Any, set[int], int]:
    """The tokens and documents of a store and how many were left out, by a loop over the documents."""
    tokenizer = load_tokenizer(model)
    tokens: list[int] = []
    used, left_out, characters, wanted = set(), set(), 0, LENGTH * most
    for text in texts():
        if characters >= BATCH:  # a batch ends here
            characters = 0
            if len(tokens) >= wanted:
                break
        if document_hash(text) in HELD_OUT:
            left_out.add(document_hash(text))
            continue
        if len(tokens) < wanted:
            used.add(document_hash(text))
        tokens += [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        characters += len(text)
    count = min(len(tokens), wanted) // LENGTH
    return numpy.asarray(tokens[: count * LENGTH]).reshape(count, LENGTH), used, len(left_out)


@pytest.mark.parametrize("most", [10, 500, ALL])
def test_every_number_of_ranks_makes_the_bits_of_one_process(most: int, workplace: Workplace, tmp_path: Path) -> None:
    """Of a store that one part fills, that several fill, and that the text does not fill."""
    found = [run_on_ranks(ranks, store_on_ranks, tmp_path / f"{ranks}", workplace.model, most) for ranks in (1, 2, 3)]
    assert all(each == found[0][0] for ranks in found for each in ranks)
    assert found[0][0].keys() == {TOKENS_NAME, DOCUMENTS_NAME, "index.json"}
    tokens, used, left_out = expected(workplace.model, most)
    for ranks in (1, 2, 3):
        store = TokenStore(tmp_path / f"{ranks}")
        assert numpy.array_equal(tokens_of(store), tokens) and set(store.documents().tolist()) == used
        assert store.index["documents_left_out"] == left_out
        assert store.is_whole_text == (len(tokens) < most)


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ '\\n' }}{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ '\\n' }}{% endif %}"
)


def chats() -> list[str]:
    pairs = zip(texts()[::2], texts()[1::2], strict=True)
    spoken = ([{"role": "user", "content": asked}, {"role": "assistant", "content": told}] for asked, told in pairs)
    return [json.dumps({"messages": messages}) for messages in spoken]


def chat_store_on_ranks(folder: Path, model: Path, kill_after: float | None = None) -> Any:
    """As `store_on_ranks`, of conversations of which the answers count."""
    from transact.distributed.process import process_group

    token_parts.BATCH_CHARACTERS = BATCH
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = CHAT_TEMPLATE
    chat = ChatTemplate(tokenizer, DocumentMarks(), answers=True)
    packing = Packing(sequence_length=LENGTH, max_sequences=ALL, marks=DocumentMarks(), chat=chat)
    with process_group("cpu", 5) as group:
        if kill_after is not None and group.rank == group.world_size - 1:
            threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        write_token_store(folder, chats(), tokenizer, packing, course=Course(workers=group))
    return bytes_of(folder)


def test_which_tokens_count_is_the_same_on_any_number_of_ranks_and_after_a_kill(
    workplace: Workplace, tmp_path: Path
) -> None:
    """Every answer is a piece that counts by itself, and nothing else is."""
    (whole,) = run_on_ranks(1, chat_store_on_ranks, tmp_path / "whole", workplace.model)
    with suppress(AssertionError):  # the rank may die after the end too
        run_on_ranks(2, chat_store_on_ranks, tmp_path / "s", workplace.model, 0.2)
    shutil.rmtree(tmp_path / "s", ignore_errors=True)  # of which the parts are in s.tmp
    assert run_on_ranks(3, chat_store_on_ranks, tmp_path / "s", workplace.model) == [whole] * 3
    assert whole.keys() == {TOKENS_NAME, COUNTED_NAME, DOCUMENTS_NAME, "index.json"}
    store, tokenizer = TokenStore(tmp_path / "s"), load_tokenizer(workplace.model)
    counted = store.counted(torch.arange(store.num_sequences))
    assert counted is not None
    said = tokenizer.decode(tokens_of(store)[counted.numpy()])
    assert "".join(f"{told}<eos>" for told in texts()[1::2]).startswith(said) and said.count("<eos>") > 100


def test_killed_at_any_moment_it_goes_on_with_any_number_of_ranks(workplace: Workplace, tmp_path: Path) -> None:
    chosen = random.Random(int(time.time()))
    (whole,) = run_on_ranks(1, store_on_ranks, tmp_path / "whole", workplace.model, ALL)
    deaths = 0
    for _ in range(KILLS):
        ranks, seconds = chosen.choice((1, 2, 3)), chosen.uniform(0.0, 0.6)
        try:
            run_on_ranks(ranks, store_on_ranks, tmp_path / "s", workplace.model, ALL, seconds)
        except AssertionError:
            deaths += 1
            assert not (tmp_path / "s").exists() or bytes_of(tmp_path / "s") == whole
        else:  # it was finished before its time: the next one begins anew, or nothing would be left to kill
            shutil.rmtree(tmp_path / "s")
    assert deaths
    assert run_on_ranks(2, store_on_ranks, tmp_path / "s", workplace.model, ALL) == [whole] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"s", "whole"}


WHOLE_TEXT = Packing(sequence_length=LENGTH, max_sequences=ALL)


class Killed(Exception):
    """What ends a tokenisation of this process, in place of a signal."""


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", BATCH)


@pytest.mark.parametrize("moment", range(0, 30, 5))
@pytest.mark.usefixtures("small_batches")
def test_what_was_finished_is_not_tokenised_again(moment: int, workplace: Workplace, tmp_path: Path) -> None:
    """Stopped behind any part; every token is made once in all."""
    tokenizer, made = load_tokenizer(workplace.model), list[int]()

    def count(tokens: int, new: int) -> None:
        made.append(new)

    def killed_later(tokens: int, new: int) -> None:
        count(tokens, new)
        if len(made) > moment:
            raise Killed

    def write(progress: Callable[[int, int], None]) -> None:
        course = Course(progress=progress)
        write_token_store(tmp_path / "s", texts(), tokenizer, WHOLE_TEXT, without=HELD_OUT, course=course)

    with pytest.raises(Killed):
        write(killed_later)
    write(count)
    tokens, _, _ = expected(workplace.model, ALL)
    assert tokens.size <= sum(made) < tokens.size + LENGTH
    assert numpy.array_equal(tokens_of(TokenStore(tmp_path / "s")), tokens)


@pytest.mark.parametrize("moment", ["at the index", "before the parts are gone", "at the name"])
@pytest.mark.usefixtures("small_batches")
def test_killed_while_the_parts_are_joined_nothing_is_tokenised_again(
    moment: str, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the store is whole its parts are there; as soon as it is, the text is not even read."""
    tokenizer, made = load_tokenizer(workplace.model), list[int]()

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    def write(name: str, documents: Iterable[str]) -> None:
        course = Course(progress=lambda tokens, new: made.append(new))
        write_token_store(tmp_path / name, documents, tokenizer, WHOLE_TEXT, course=course)

    write("whole", texts())
    place = {"at the index": "write_index", "before the parts are gone": "_finish", "at the name": "publish"}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(tokenising, place, killed)
        with pytest.raises(Killed):
            write("s", texts())
    made.clear()
    write("s", texts() if moment == "at the index" else iter(killed, None))
    assert sum(made) == 0
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


def test_a_joined_store_that_is_damaged_is_made_again(workplace: Workplace, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(workplace.model)
    write_token_store(tmp_path / "s", texts(), tokenizer, WHOLE_TEXT)
    whole = bytes_of(tmp_path / "s")
    for name in whole:
        (tmp_path / "s").rename(tmp_path / "s.tmp")
        content = (tmp_path / "s.tmp" / name).read_bytes()
        (tmp_path / "s.tmp" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        write_token_store(tmp_path / "s", texts(), tokenizer, WHOLE_TEXT)
        assert bytes_of(tmp_path / "s") == whole


@pytest.mark.parametrize("most", [1, 60, 400])
def test_no_more_is_tokenised_than_each_rank_has_at_work(most: int, workplace: Workplace, tmp_path: Path) -> None:
    """Of what is at work when the tokens suffice, at most one part of each rank is too much."""
    ranks = 3
    found = run_on_ranks(ranks, batches_tokenised, tmp_path / "s", workplace.model, most)
    whole = run_on_ranks(1, batches_tokenised, tmp_path / "whole", workplace.model, most)
    assert sum(whole) <= sum(found) <= sum(whole) + ranks - 1


def test_every_rank_gets_a_part_while_the_others_are_at_work(workplace: Workplace, tmp_path: Path) -> None:
    found = run_on_ranks(3, batches_tokenised, tmp_path / "s", workplace.model, 400, tmp_path / "at work")
    assert min(found) > 0


class SlowBackend:
    """A tokenizer's backend that counts the batches it is given, and takes as long for each.

    first_batch: called before the first one.
    """

    def __init__(self, backend: Any, first_batch: Callable[[], None]) -> None:
        self.backend, self.first_batch, self.calls = backend, first_batch, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts: list[str], **named: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            self.first_batch()
        time.sleep(0.02)
        return self.backend.encode_batch_fast(texts, **named)


class SlowTokenizer:
    def __init__(self, tokenizer: Any, first_batch: Callable[[], None]) -> None:
        self.tokenizer, self.backend_tokenizer = tokenizer, SlowBackend(tokenizer.backend_tokenizer, first_batch)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def batches_tokenised(folder: Path, model: Path, most: int, meeting: Path | None = None) -> int:
    """Tokenise slowly; return how many batches this rank made. At a meeting no first batch ends before all began."""
    from transact.distributed.process import process_group

    token_parts.BATCH_CHARACTERS = BATCH
    packing = Packing(sequence_length=LENGTH, max_sequences=most)
    with process_group("cpu", 5) as group:

        def first_batch() -> None:
            if meeting is not None:
                meeting.mkdir(exist_ok=True)
                (meeting / str(group.rank)).touch()
                until = time.monotonic() + 60
                while len(list(meeting.iterdir())) < group.world_size and time.monotonic() < until:
                    time.sleep(0.01)

        tokenizer = SlowTokenizer(load_tokenizer(model), first_batch)
        write_token_store(folder, texts(), tokenizer, packing, course=Course(workers=group))
    return int(tokenizer.backend_tokenizer.calls)


def test_a_rank_that_cannot_read_the_text_ends_all_with_its_reason(workplace: Workplace, tmp_path: Path) -> None:
    for keeps, left in ((False, set()), (True, {"s.tmp"})):
        ends = run_on_ranks(2, refused, tmp_path / "s", workplace.model, keeps)
        assert ends == ["the third part is not text"] * 2
        assert {path.name for path in tmp_path.iterdir()} == left


def refused(folder: Path, model: Path, keeps: bool) -> str:
    from transact.distributed.process import process_group

    token_parts.BATCH_CHARACTERS = BATCH
    packing = Packing(sequence_length=LENGTH, max_sequences=ALL)

    def documents(rank: int) -> Iterator[str]:
        for number, text in enumerate(texts()):
            if number > 50 and rank == 1:
                raise ValueError("the third part is not text")
            yield text

    with process_group("cpu", 5) as group:
        try:
            tokenizer = load_tokenizer(model)
            write_token_store(
                folder, documents(group.rank), tokenizer, packing, course=Course(workers=group, keeps_parts=keeps)
            )
        except ValueError as error:
            group.barrier()
            return str(error)
    return ""
