"""The refit against explicit normal equations and against brute force, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.support.apart import anonymous_growth
from transact.pruning import refit as module
from transact.pruning.refit import Ridge, add_gram, damped, damping, refit, refit_to


def gram(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    total = torch.zeros(x.shape[-1], (x if y is None else y).shape[-1], dtype=torch.float64)
    add_gram(total, x, y)
    return total


def correlated(tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, channels, generator=generator, dtype=torch.float64) @ mixing


def test_gram_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    assert gram(x).tolist() == [[10, 2], [2, 4]]
    assert gram(x, torch.tensor([[[1.0]], [[2.0]]])).tolist() == [[7], [2]]
    assert gram(x.bfloat16()).dtype == torch.float64
    assert damping(gram(x), Ridge(share=0.1)) == pytest.approx(0.7)
    assert damped(gram(x), Ridge(share=0.1)).tolist() == [[10.7, 2], [2, 4.7]]


@pytest.mark.parametrize(
    ("diagonal", "mean", "median"),
    [
        ((1.0, 2.0, 3.0), 2.0, 2.0),
        ((1.0, 2.0, 600_000.0), 200_001.0, 2.0),  # an attention sink's channel
        ((4.0, 1.0, 1000.0, 3.0), 252.0, 3.0),  # of an even number the lower of both in the middle
        ((0.0, 0.0, 6.0), 2.0, 2.0),  # most channels were never active: the mean takes the median's place
        ((0.0, 0.0, 0.0), 10.0, 10.0),  # nothing ever was: 1, whatever the share
    ],
)
def test_damping_by_hand(diagonal: tuple[float, ...], mean: float, median: float) -> None:
    matrix = torch.tensor(diagonal).diag() + 0.5 - 0.5 * torch.eye(len(diagonal))
    assert damping(matrix, Ridge(share=0.1)) == pytest.approx(0.1 * mean)
    assert damping(matrix, Ridge(share=0.1, unit="median")) == pytest.approx(0.1 * median)


@pytest.mark.parametrize("elements", [1, 40, 100, 10**9])
def test_gram_in_blocks_of_any_size_is_the_sum_of_products(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(module, "GRAM_BLOCK_ELEMENTS", elements)
    x, y = correlated(64, 13).float(), correlated(64, 7, seed=1).float()
    total = torch.ones(13, 7, dtype=torch.float64)
    for part in range(2):
        add_gram(total, x[32 * part :][:32].view(4, 8, 13), y[32 * part :][:32].view(4, 8, 7))
    torch.testing.assert_close(total, 1 + x.double().T @ y.double(), rtol=1e-5, atol=1e-5)


def test_a_product_of_one_block_has_the_bits_of_a_whole_one() -> None:
    parts, total = [torch.randn(2, 100, 1536) for _ in range(3)], torch.zeros(1536, 1536, dtype=torch.float64)
    for part in parts:
        add_gram(total, part)
    flat = [part.flatten(0, 1) for part in parts]
    assert torch.equal(total, sum((part.T @ part).double() for part in flat))


def test_a_gram_sum_needs_a_block_beside_itself_and_no_copy() -> None:
    """Of 36 million elements a product in float32 and its float64 copy would be 430 MB."""
    x, total = torch.randn(8, 6000), torch.ones(6000, 6000, dtype=torch.float64)
    block_bytes = module.GRAM_BLOCK_ELEMENTS * 12
    with anonymous_growth() as risen:
        add_gram(total, x)
        assert risen() < block_bytes + 50e6
    torch.testing.assert_close(total[5999], 1 + (x.T[5999] @ x).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chosen", ["indices", "matrix"])
def test_refit_solves_the_damped_least_squares(chosen: str) -> None:
    """As data: every channel once more, as a row of its own of size sqrt(damping), and plain lstsq on that."""
    x, weight = correlated(50, 6), torch.randn(3, 6, dtype=torch.float64)
    kept = torch.tensor([0, 2, 5])
    transform = kept if chosen == "indices" else torch.randn(3, 6, dtype=torch.float64)
    strength = damping(x.T @ x, Ridge(share=0.05))
    rows = torch.cat([x, strength**0.5 * torch.eye(6, dtype=torch.float64)])
    inputs = rows[:, kept] if chosen == "indices" else rows @ transform.T
    expected = torch.linalg.lstsq(inputs, rows @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, x.T @ x, transform, Ridge(share=0.05)), expected.float())


def test_a_refit_to_any_target_solves_its_own_normal_equations() -> None:
    """Inputs and targets that the weights were not made for."""
    weight, kept = torch.randn(3, 6, dtype=torch.float64), torch.tensor([1, 4])
    y, target = correlated(50, 2), torch.randn(50, 3, dtype=torch.float64)
    strength = damping(y.T @ y, Ridge(share=0.1))
    left = torch.cat([y, strength**0.5 * torch.eye(2, dtype=torch.float64)])
    right = torch.cat([target, strength**0.5 * weight[:, kept].T])
    expected = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(refit_to(weight, target.T @ y, y.T @ y, kept, Ridge(share=0.1)), expected.float())


def test_refit_lowers_the_error_of_the_plain_cut() -> None:
    x, weight, kept = correlated(200, 8), torch.randn(4, 8, dtype=torch.float64), torch.arange(5)
    fitted = refit(weight, x.T @ x, kept, Ridge(share=1e-6)).double()

    def error(candidate: torch.Tensor) -> float:
        return float((x @ weight.T - x[:, kept] @ candidate.T).square().sum())

    assert error(fitted) < 0.9 * error(weight[:, kept])
    for _ in range(20):  # a minimum: no small change helps
        assert error(fitted + 1e-3 * torch.randn_like(fitted)) > error(fitted)


def test_nothing_cut_changes_nothing() -> None:
    x, weight = correlated(50, 6), torch.randn(3, 6)
    torch.testing.assert_close(refit(weight, x.T @ x, torch.arange(6), Ridge(share=0.01)), weight)


def test_damping_pulls_towards_the_plain_cut() -> None:
    x, weight, kept = correlated(50, 6), torch.randn(3, 6), torch.tensor([0, 3])
    torch.testing.assert_close(refit(weight, x.T @ x, kept, Ridge(share=1e9)), weight[:, kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.zeros(5, 6, dtype=torch.float64), id="never active"),
        pytest.param(correlated(3, 6), id="fewer tokens than channels"),
        pytest.param(correlated(50, 6) * torch.tensor([1.0, 0, 1, 0, 1, 1]), id="dead channels"),
        pytest.param(correlated(50, 1).expand(50, 6), id="six times the same channel"),
        pytest.param(correlated(50, 6) * 1e-12, id="tiny"),
    ],
)
def test_degenerate_input_stays_finite_and_no_worse_than_the_plain_cut(x: torch.Tensor) -> None:
    weight, kept = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    fitted = refit(weight, x.T @ x, kept, Ridge(share=0.01)).double()
    assert fitted.isfinite().all()
    target = x @ weight.T
    plain = (target - x[:, kept] @ weight[:, kept].T).square().sum()
    assert (target - x[:, kept] @ fitted.T).square().sum() <= plain * (1 + 1e-6) + 1e-20
