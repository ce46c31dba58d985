"""Windows of tokens that two texts share, against a set of tuples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from transact.data import overlap
from transact.data.overlap import WINDOW, Windows
from transact.data.token_store import DOCUMENTS_NAME, TOKENS_NAME, TokenStore, write_index


def store_of(folder: Path, tokens: torch.Tensor) -> TokenStore:
    """A store of these tokens: (sequences, length)."""
    folder.mkdir()
    tokens.numpy().astype("uint16").tofile(folder / TOKENS_NAME)
    (folder / DOCUMENTS_NAME).touch()
    count, length = tokens.shape
    facts = {"num_sequences": count, "sequence_length": length, "dtype": "uint16", "is_whole_text": True}
    write_index(folder, facts | {"largest_token": 99, "documents": 0, "documents_left_out": 0})
    return TokenStore(folder)


def windows_of(tokens: torch.Tensor) -> list[tuple[int, ...]]:
    flat = tokens.flatten().tolist()
    return [tuple(flat[first : first + WINDOW]) for first in range(len(flat) - WINDOW + 1)]


@pytest.mark.parametrize("length", [8, 32])
def test_share_is_that_of_a_set_of_tuples(tmp_path: Path, length: int) -> None:
    """Copied stretches lie across the ends of sequences and of chunks."""
    torch.manual_seed(1)
    held_out, train = torch.randint(0, 50, (64, length)), torch.randint(0, 50, (256, length))
    train.view(-1)[101:141] = held_out.view(-1)[17:57]
    train.view(-1)[length * 64 - 7 : length * 64 + 23] = held_out.view(-1)[200:230]
    held_out.view(-1)[-40:-10] = held_out.view(-1)[20:50]  # stands twice there, and counts twice
    known = set(windows_of(train))
    windows = windows_of(held_out)
    expected = sum(window in known for window in windows) / len(windows)
    assert expected > 0.02
    ours, theirs = store_of(tmp_path / "a", held_out), store_of(tmp_path / "b", train)
    done: Counter[str] = Counter()
    with patch.object(overlap, "CHUNK_TOKENS", 4 * length):
        found = Windows(ours)
        for part in (range(100), range(100, 256)):  # as two ranks would
            found.look_in(theirs, part, lambda count: done.update(tokens=count))
    assert found.share() == pytest.approx(expected)
    assert done["tokens"] == 256 * length - WINDOW + 1


def test_a_text_of_others_shares_nothing(tmp_path: Path) -> None:
    torch.manual_seed(2)
    found = Windows(store_of(tmp_path / "a", torch.randint(0, 50, (64, 16))))
    found.look_in(store_of(tmp_path / "b", torch.randint(50, 99, (64, 16))), range(64), lambda count: None)
    assert found.share() == 0.0


def test_a_text_shorter_than_a_window_shares_nothing(tmp_path: Path) -> None:
    found = Windows(store_of(tmp_path / "a", torch.zeros(1, WINDOW - 1, dtype=torch.int64)))
    found.look_in(store_of(tmp_path / "b", torch.zeros(9, 16, dtype=torch.int64)), range(9), lambda count: None)
    assert found.share() == 0.0


def test_of_chats_what_recurs_in_each_does_not_count(tmp_path: Path) -> None:
    """A template writes the same into every conversation, held out or not; one is trained on, but for a word."""
    torch.manual_seed(3)
    held_out, train = torch.randint(0, 50, (16, 64)), torch.randint(50, 99, (64, 64))
    held_out[:, :30] = train[:, :30] = torch.arange(30)
    train[7] = held_out[5]
    train[7, 45] = 99
    known, windows = set(windows_of(train)), Counter(windows_of(held_out))
    once = [window for window, count in windows.items() if count == 1]
    expected = sum(window in known for window in once) / len(once)
    found = Windows(store_of(tmp_path / "a", held_out), once=True)
    found.look_in(store_of(tmp_path / "b", train), range(64), lambda count: None)
    assert 0.02 < expected < 0.1
    assert found.share() == pytest.approx(expected)
