"""Several token stores read as one, some of which count all of their tokens and some not."""

from __future__ import annotations

from pathlib import Path

import torch

from transact.data.token_store import COUNTED_NAME, DOCUMENTS_NAME, TOKENS_NAME, TokenStore, write_index
from transact.data.training_text import JoinedStores


def store_of(folder: Path, tokens: torch.Tensor, counted: torch.Tensor | None = None) -> TokenStore:
    folder.mkdir()
    tokens.numpy().astype("uint16").tofile(folder / TOKENS_NAME)
    names = [TOKENS_NAME, DOCUMENTS_NAME]
    if counted is not None:
        counted.numpy().tofile(folder / COUNTED_NAME)
        names.append(COUNTED_NAME)
    (folder / DOCUMENTS_NAME).touch()
    count, length = tokens.shape
    facts = {"num_sequences": count, "sequence_length": length, "dtype": "uint16", "is_whole_text": True}
    write_index(folder, facts | {"largest_token": 99}, names)
    return TokenStore(folder)


def test_tokens_and_what_counts_come_from_the_store_of_each_position(tmp_path: Path) -> None:
    tokens = torch.arange(32).view(8, 4)
    counted = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    joined = JoinedStores(
        {"plain": store_of(tmp_path / "plain", tokens[:5]), "chat": store_of(tmp_path / "chat", tokens[5:], counted)}
    )
    positions = torch.tensor([6, 0, 5, 4, 7])
    assert joined.sequences(positions).tolist() == tokens[positions].tolist()
    found = joined.counted(positions)
    assert found is not None
    assert found.tolist() == [[False] * 4, [True] * 4, [True, False, True, False], [True] * 4, [True] * 4]
    assert joined.num_targets(positions) == 0 + 3 + 1 + 3 + 3
    assert joined.counted(torch.tensor([0, 1])) is None
    assert joined.num_sequences == 8
