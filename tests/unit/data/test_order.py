"""The order of sequences: shuffled, complete, the same for any number of ranks."""

from __future__ import annotations

import torch

from transact.data.order import SequenceOrder, micro_batches

ORDER = SequenceOrder(num_sequences=20, num_reserved=6, seed=3)


def test_a_pass_takes_every_trainable_sequence_once_and_no_reserved_one() -> None:
    reserved = set(ORDER.reserved(0, 6).tolist())
    first = ORDER.trainable(0, 14).tolist()
    assert len(set(first)) == 14
    assert reserved | set(first) == set(range(20))
    assert not reserved & set(first)


def test_rounds_that_follow_on_never_take_a_sequence_twice() -> None:
    pieces = torch.cat([ORDER.trainable(0, 5), ORDER.trainable(5, 2), ORDER.trainable(7, 7)])
    assert pieces.equal(ORDER.trainable(0, 14))


def test_the_next_pass_has_another_order_of_the_same_sequences() -> None:
    first, second = ORDER.trainable(0, 14).tolist(), ORDER.trainable(14, 14).tolist()
    assert sorted(first) == sorted(second)
    assert first != second
    across = ORDER.trainable(10, 8).tolist()
    assert across == first[10:] + second[:4]


def test_another_seed_is_another_order() -> None:
    other = SequenceOrder(num_sequences=20, num_reserved=6, seed=4)
    assert not other.trainable(0, 14).equal(ORDER.trainable(0, 14))


def test_micro_batches_are_the_same_whoever_takes_them() -> None:
    alone = micro_batches(10, 3, 0, 1)
    assert alone == [(0, 3), (3, 6), (6, 9), (9, 10)]
    for world_size in (2, 3, 4):
        dealt = [micro_batches(10, 3, rank, world_size) for rank in range(world_size)]
        assert len({len(turns) for turns in dealt}) == 1, "every rank must run as many forwards"
        taken = [turn for turns in zip(*dealt, strict=True) for turn in turns if turn is not None]
        assert taken == alone


def test_more_of_the_same_text_reserves_the_same_sequences() -> None:
    """What calibrates and validates does not change with the tokens of recovery."""
    orders = [SequenceOrder(num_sequences=count, num_reserved=6, seed=3) for count in (48, 49, 200, 5000)]
    assert len({tuple(order.reserved(0, 6).tolist()) for order in orders}) == 1
    for order in orders:
        passed = order.trainable(0, order.num_trainable).tolist()
        assert sorted([*passed, *order.reserved(0, 6).tolist()]) == list(range(order.num_sequences))
