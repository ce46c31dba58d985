"""Micro-batches of a recovery in which not all tokens count: the gradients of the batch are those of one mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional

from transact.data.order import SequenceOrder
from transact.data.token_store import COUNTED_NAME, DOCUMENTS_NAME, TOKENS_NAME, TokenStore, write_index
from transact.data.training_text import JoinedStores, TrainingStore
from transact.models.loss_head import IGNORED, LossHead, LossRequest, next_token_targets
from transact.stages.recover.batches import Batches, MicroBatch

SEQUENCES, LENGTH, VOCAB, BATCH = 24, 8, 11, 8
SHARES = (0.0, 0.05, 0.3, 0.9)  # of the tokens of a sequence that count


def store_in(folder: Path, *, has_counted: bool = True, share: float | None = None) -> TokenStore:
    """Random tokens; sequences differ much in how many of them count, and some have none."""
    chosen = numpy.random.default_rng(0)
    folder.mkdir()
    chosen.integers(0, VOCAB, (SEQUENCES, LENGTH)).astype(numpy.uint16).tofile(folder / TOKENS_NAME)
    numpy.zeros(1, dtype=numpy.uint64).tofile(folder / DOCUMENTS_NAME)
    shares = numpy.asarray([SHARES[number % len(SHARES)] if share is None else share for number in range(SEQUENCES)])
    (chosen.random((SEQUENCES, LENGTH)) < shares[:, None]).astype(numpy.uint8).tofile(folder / COUNTED_NAME)
    facts = {"num_sequences": SEQUENCES, "sequence_length": LENGTH, "dtype": "uint16", "is_whole_text": True}
    names = [TOKENS_NAME, *([COUNTED_NAME] if has_counted else []), DOCUMENTS_NAME]
    write_index(folder, facts | {"largest_token": VOCAB - 1}, names)
    return TokenStore(folder)


def mixed_in(folder: Path) -> JoinedStores:
    """Sequences of which some tokens count, and others of which all do."""
    return JoinedStores({"chat": store_in(folder / "chat"), "plain": store_in(folder / "plain", has_counted=False)})


def order_of(store: TrainingStore) -> SequenceOrder:
    return SequenceOrder(num_sequences=store.num_sequences, num_reserved=4, seed=0)


def micro_batches_of(store: TrainingStore, rank: int, ranks: int, size: int, step: int) -> list[MicroBatch]:
    order = order_of(store)
    group: Any = SimpleNamespace(rank=rank, world_size=ranks, device=torch.device("cpu"))
    config: Any = SimpleNamespace(recover=SimpleNamespace(batch=BATCH), engine=SimpleNamespace(micro_batch=size))
    texts: Any = SimpleNamespace(train=store, order=order)
    return Batches(texts, 0, config, group).of(step)


def head_and_hidden() -> tuple[LossHead, torch.Tensor]:
    """What a token's hidden state is depends on the token alone."""
    torch.manual_seed(0)
    return LossHead(5, VOCAB), torch.randn(VOCAB, 5)


@pytest.mark.parametrize(("ranks", "size"), [(1, 8), (1, 2), (2, 1), (4, 2), (8, 1)])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("make_store", [lambda folder: store_in(folder / "s"), mixed_in], ids=["chat", "mixture"])
def test_every_division_of_a_batch_has_its_mean_and_gradients(
    make_store: Callable[[Path], TrainingStore], ranks: int, size: int, step: int, tmp_path: Path
) -> None:
    """The mean of what every micro-batch computes, as gradients are accumulated and averaged over ranks."""
    store, (head, hidden) = make_store(tmp_path), head_and_hidden()
    positions = order_of(store).trainable(step * BATCH, BATCH)
    tokens, counted = store.sequences(positions), store.counted(positions)
    assert counted is not None
    targets = tokens.clone().masked_fill(~counted, -100)[:, 1:].flatten()
    expected = functional.cross_entropy(head(hidden[tokens])[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    expected.backward()
    assert head.weight.grad is not None
    gradient, head.weight.grad = head.weight.grad, None

    batch = [each for rank in range(ranks) for each in micro_batches_of(store, rank, ranks, size, step)]
    mean = 0.0
    for each in batch:
        with head.computing(LossRequest(targets=next_token_targets(each.tokens, each.counted))):
            loss = head(hidden[each.tokens]) * each.weight / len(batch)
        loss.backward()
        mean += float(loss.detach())
    assert len(batch) == BATCH // size and mean == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(head.weight.grad, gradient)
    if size == 1:
        assert any((next_token_targets(each.tokens, each.counted) == IGNORED).all() for each in batch)


def test_a_batch_in_which_nothing_counts_changes_nothing(tmp_path: Path) -> None:
    batch = micro_batches_of(store_in(tmp_path / "s", share=0.0), 0, 2, 2, 0)
    assert [each.weight for each in batch] == [0.0, 0.0]


def test_where_all_tokens_count_no_loss_is_weighted(tmp_path: Path) -> None:
    for each in micro_batches_of(store_in(tmp_path / "s", has_counted=False), 0, 2, 2, 0):
        assert each.counted is None and each.weight == 1.0
