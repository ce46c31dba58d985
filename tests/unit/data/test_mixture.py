"""The order of a mixture: shares hold in every window, sources are used as a whole, positions are one integer's."""

from __future__ import annotations

import math
import random

import pytest
import torch

from transact.data.mixture import BLOCK, MixtureOrder, Source, adapted_weights, dealing


def order(*sources: tuple[int, float, bool], reserved: int = 0) -> MixtureOrder:
    return MixtureOrder(
        [Source(num_sequences=size, weight=weight, repeats=repeats) for size, weight, repeats in sources], reserved, 3
    )


def source_of(positions: torch.Tensor, *sizes: int) -> list[int]:
    bounds = torch.tensor(sizes).cumsum(0)
    return torch.searchsorted(bounds, positions, right=True).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("weights", [(1.0,), (0.2, 0.8), (1, 1, 1), (0.5, 0.25, 0.125, 0.125), (0.67, 0.045, 0.285)])
def test_every_window_has_its_shares(weights: tuple[float, ...]) -> None:
    """Less than one sequence off after any number of them, so less than two in any window, over ends of blocks too."""
    dealt = torch.nn.functional.one_hot(torch.cat([dealing(weights)] * 2), len(weights)).cumsum(0)
    shares = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
    ideal = torch.arange(1, 2 * BLOCK + 1)[:, None] * shares
    rounding = 0.5 * torch.arange(1, 2 * BLOCK + 1)[:, None] / BLOCK  # to whole sequences of a block
    assert ((dealt - ideal).abs() < 1 + rounding).all()


def test_random_weights_keep_their_shares() -> None:
    chance = random.Random(0)
    for _ in range(4):
        weights = tuple(chance.uniform(0.001, 1) for _ in range(chance.randint(2, 12)))
        chosen = dealing(weights)
        counts = torch.bincount(chosen, minlength=len(weights))
        dealt = torch.nn.functional.one_hot(chosen, len(weights)).cumsum(0)
        assert ((counts / BLOCK - torch.tensor(weights) / sum(weights)).abs() * BLOCK <= 1).all()
        assert ((dealt - torch.arange(1, BLOCK + 1)[:, None] * counts / BLOCK).abs() < 1).all()


def test_a_tiny_weight_is_not_lost() -> None:
    assert torch.bincount(dealing((1e-9, 1.0))).tolist() == [1, BLOCK - 1]


def test_half_and_half_by_hand() -> None:
    found = order((4, 1, True), (6, 1, True)).trainable(0, 8)
    assert source_of(found, 4, 6) in ([0, 1] * 4, [1, 0] * 4)
    assert sorted(found[found < 4].tolist()) == [0, 1, 2, 3]  # each once before any twice


def test_any_part_of_the_order_is_the_same() -> None:
    """A resumed run, or another batch size, sees the sequences of an uninterrupted one."""
    mixed = order((50, 0.3, True), (400, 0.6, False), (9, 0.1, False), reserved=20)
    whole = mixed.trainable(0, 2_000)
    for start, count in ((0, 1), (7, 13), (333, 444), (1_990, 10)):
        assert mixed.trainable(start, count).tolist() == whole[start : start + count].tolist()


def test_reserved_sequences_are_a_mixture_that_is_never_trained_on() -> None:
    mixed = order((50, 0.25, True), (400, 0.75, True), reserved=20)
    reserved = mixed.reserved(0, 20)
    assert torch.bincount(torch.tensor(source_of(reserved, 50, 400))).tolist() == [5, 15]
    assert reserved[3:9].tolist() == mixed.reserved(3, 6).tolist()
    assert not set(reserved.tolist()) & set(mixed.trainable(0, 3_000).tolist())


def test_a_source_that_stops_leaves_its_share_to_the_others() -> None:
    mixed = order((10, 0.5, False), (1_000, 0.3, True), (1_000, 0.2, True))
    sources = source_of(mixed.trainable(0, 220), 10, 1_000, 1_000)
    assert sources.count(0) == 10 and 0 not in sources[20:]
    assert abs(sources[20:].count(1) - 0.6 * 200) < 2
    assert mixed.used(220) == [10, sources.count(1), sources.count(2)]
    assert mixed.passes(220)[0] == 1.0


def test_after_all_have_stopped_the_mixture_begins_anew_in_another_order() -> None:
    mixed = order((10, 0.5, False), (30, 0.5, False))
    first, second = mixed.trainable(0, 40), mixed.trainable(40, 40)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()
    assert source_of(first, 10, 30) == source_of(second, 10, 30)
    assert mixed.used(50) == [15, 35]
    assert mixed.passes(80) == [2.0, 2.0]


def test_one_that_repeats_begins_anew_in_another_order() -> None:
    found = order((5, 1, True), (500, 1, True)).trainable(0, 20)
    own = found[found < 5].tolist()
    assert sorted(own[:5]) == sorted(own[5:]) == [0, 1, 2, 3, 4] and own[:5] != own[5:]


def test_weights_follow_the_losses_by_hand() -> None:
    """Sheared LLaMA's rule: 0.25 e^0.5 and 0.75 e^0, over their sum; a loss below the reference counts as at it."""
    raised = 0.25 * math.exp(0.5)
    assert adapted_weights([0.25, 0.75], [3.5, 1.0], [3.0, 2.0]) == pytest.approx(
        [raised / (raised + 0.75), 0.75 / (raised + 0.75)]
    )
    assert adapted_weights([1, 3], [2_000.0, 1.0], [1.0, 1.0]) == pytest.approx([1, 1 / BLOCK], rel=1e-3)


def test_changed_weights_hold_from_their_sequence_on() -> None:
    """What came before stays, and no sequence is skipped or used twice at the change."""
    mixed = order((300, 0.5, True), (300, 0.5, True))
    changed = mixed.with_changes([(100, (0.2, 0.8)), (200, (0.9, 0.1))])
    positions = changed.trainable(0, 300)
    assert positions[:100].tolist() == mixed.trainable(0, 100).tolist()
    sources = source_of(positions, 300, 300)
    assert abs(sources[100:200].count(0) - 20) < 2 and abs(sources[200:].count(0) - 90) < 2
    assert len(set(positions.tolist())) == 300
    assert changed.trainable(150, 100).tolist() == positions[150:250].tolist()
    assert changed.used(300) == [sources.count(0), sources.count(1)]
