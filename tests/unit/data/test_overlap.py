"""Windows of tokens that two texts share, against a set of tuples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from benchmarks.workload import write_random_tokens
from transact.data import overlap
from transact.data.overlap import WINDOW, Windows
from transact.data.token_store import TokenStore


def store_of(folder: Path, tokens: torch.Tensor) -> TokenStore:
    """A store of these tokens: (sequences, length)."""
    count, length = tokens.shape
    write_random_tokens(folder, num_sequences=count, sequence_length=length, vocab_size=50, seed=int(tokens.sum()))
    store: Any = TokenStore(folder)
    store._tokens = tokens.numpy()
    return store


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
