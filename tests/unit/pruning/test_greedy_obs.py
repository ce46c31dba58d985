"""Greedy OBS against brute force: try every channel, refit the rest, take the one that costs least."""

from __future__ import annotations

import pytest
import torch

from transact.pruning.greedy_obs import CANDIDATES_PER_DROP, block_order, elimination_path, greedy_obs
from transact.pruning.refit import Ridge, damped

TWO_PERCENT, ONE_PERCENT = Ridge(share=0.02), Ridge(share=0.01)


def example(channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * channels, channels, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(5, channels, generator=generator, dtype=torch.float64), x.T @ x


def error(weight: torch.Tensor, gram: torch.Tensor, kept: list[int]) -> float:
    """Least squared error of W x from the kept inputs: trace(W (G - G_S G_SS^-1 G_S^T) W^T)."""
    cross = gram[:, kept]
    left = gram - cross @ torch.linalg.solve(gram[kept][:, kept], cross.T)
    return float((weight @ left @ weight.T).trace())


def brute_force(weight: torch.Tensor, gram: torch.Tensor, num_kept: int) -> list[int]:
    kept = list(range(weight.shape[1]))
    while len(kept) > num_kept:
        drop = min(kept, key=lambda channel: error(weight, gram, [each for each in kept if each != channel]))
        kept.remove(drop)
    return kept


@pytest.mark.parametrize("block", [1, 2, 8])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_brute_force_on_eight_channels(seed: int, block: int) -> None:
    """A block's candidates are all eight channels here, so blocks too are exact."""
    weight, gram = example(8, seed)
    assert greedy_obs(weight, gram, 3, TWO_PERCENT, block).tolist() == brute_force(weight, damped(gram, TWO_PERCENT), 3)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_lose_little(seed: int) -> None:
    weight, gram = example(96, seed)
    exact, blocked = (greedy_obs(weight, gram, 48, ONE_PERCENT, block).tolist() for block in (1, 16))
    norms = gram.diagonal().topk(48).indices.tolist()
    errors = [error(weight, damped(gram, ONE_PERCENT), kept) for kept in (exact, blocked, norms)]
    assert errors[1] < 1.1 * errors[0]
    assert errors[1] < 0.9 * errors[2]


def test_float32_chooses_as_float64() -> None:
    weight, gram = example(64, 7)
    assert torch.equal(
        greedy_obs(weight.float(), gram.float(), 30, ONE_PERCENT), greedy_obs(weight, gram, 30, ONE_PERCENT)
    )


def test_duplicates_go_first() -> None:
    """Three copies of a channel: two of them cost nothing once the third takes over."""
    weight, gram = example(6, 0)
    copies = torch.tensor([0, 1, 2, 3, 4, 5, 2, 2])
    kept = greedy_obs(weight[:, copies], gram[copies][:, copies], 6, Ridge(share=1e-6)).tolist()
    assert len({2, 6, 7} & set(kept)) == 1


def test_dead_channels_go_first() -> None:
    weight, gram = example(8, 1)
    gram[:, [2, 5]] = 0
    gram[[2, 5]] = 0
    assert not {2, 5} & set(greedy_obs(weight, gram, 4, ONE_PERCENT).tolist())
    assert len(greedy_obs(weight, torch.zeros_like(gram), 4, ONE_PERCENT)) == 4  # nothing ever active: still an answer


def separate_elimination(
    weight: torch.Tensor, gram: torch.Tensor, num_kept: int, ridge: Ridge, block: int
) -> list[int]:
    """One width alone, from the start, with rank-one updates of the large matrices inside each block."""
    inverse = damped(gram, ridge).inverse()
    alive = list(range(weight.shape[1]))
    while len(alive) > num_kept:
        count = min(block, len(alive) - num_kept)
        cost = weight.square().sum(dim=0) / inverse.diagonal()
        pool = [alive[place] for place in cost.argsort()[: CANDIDATES_PER_DROP * count].tolist()]
        for _ in range(count):
            cost = weight.square().sum(dim=0) / inverse.diagonal()
            drop = min((place for place, channel in enumerate(alive) if channel in pool), key=lambda p: float(cost[p]))
            stays = [place for place in range(len(alive)) if place != drop]
            row = inverse[drop, stays] / inverse[drop, drop]
            weight = weight[:, stays] - weight[:, [drop]] * row
            inverse = inverse[stays][:, stays] - inverse[stays][:, [drop]] * row
            del alive[drop]
    return alive


@pytest.mark.parametrize("block", [1, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_one_path_serves_all_widths(seed: int, block: int) -> None:
    """At every width, between blocks too, it keeps what an elimination down to that width alone keeps."""
    weight, gram = example(30, seed)
    widths = range(1, 31)
    path = elimination_path(weight, gram, widths, TWO_PERCENT, block)
    assert path.keys() == set(widths)
    for width in widths:
        assert path[width].tolist() == separate_elimination(weight, gram, width, TWO_PERCENT, block), width
        assert torch.equal(path[width], greedy_obs(weight, gram, width, TWO_PERCENT, block))


@pytest.mark.parametrize("widths", [[128], [200, 65, 64, 63, 1], [256, 255, 192]])
def test_whatever_is_asked_besides_changes_nothing(widths: list[int]) -> None:
    """In float32, where another order of operations would show."""
    weight, gram = (each.float() for each in example(256, 11))
    path = elimination_path(weight, gram, widths, ONE_PERCENT)
    assert all(torch.equal(path[width], greedy_obs(weight, gram, width, ONE_PERCENT)) for width in widths)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_go_in_the_order_of_brute_force(seed: int) -> None:
    """Four heads of three inputs: each time the one without which the refitted rest errs least."""
    weight, gram = example(12, seed)
    whole, heads, expected = damped(gram, TWO_PERCENT), list(range(4)), []
    while heads:

        def left(gone: int, heads: list[int] = heads) -> list[int]:
            return [3 * head + each for head in heads if head != gone for each in range(3)]

        expected.append(min(heads, key=lambda head: error(weight, whole, left(head))))
        heads = [head for head in heads if head != expected[-1]]
    assert block_order(weight, gram, 3, TWO_PERCENT) == expected


@pytest.mark.parametrize("share", [1e-4, 1e-2])
def test_channels_whose_sums_drown_the_others_in_rounding_are_chosen_among_all_the_same(share: float) -> None:
    """Six that fire together at one token: in float32 not positive definite with the median's damping."""
    generator = torch.Generator().manual_seed(0)
    x = 0.02 * torch.randn(1024, 256, generator=generator)
    x[0, :6] += 6000 * torch.rand(6, generator=generator)
    weight, sums = torch.randn(8, 256, generator=generator), (x.double().T @ x.double()).float()
    ridge = Ridge(share=share, unit="median")
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(damped(sums, ridge))
    assert len(greedy_obs(weight, sums, 128, ridge).unique()) == 128
    assert sorted(block_order(weight, sums, 64, ridge)) == [0, 1, 2, 3]
