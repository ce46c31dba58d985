"""The refit against explicit normal equations and against brute force, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.support.apart import anonymous_growth
from tests.support.least_squares import Rows, cross_validated, pulled, squared_error
from transact.pruning import refit as module
from transact.pruning.refit import (
    Ridge,
    add_gram,
    add_product,
    complete_gram,
    corrected,
    damped,
    damping,
    nested_errors,
    refit,
)


def gram(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    total = torch.zeros(x.shape[-1], (x if y is None else y).shape[-1], dtype=torch.float64)
    if y is None:
        add_gram(total, x)
        return complete_gram(total)
    add_product(total, x, y)
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
        add_product(total, x[32 * part :][:32].view(4, 8, 13), y[32 * part :][:32].view(4, 8, 7))
    torch.testing.assert_close(total, 1 + x.double().T @ y.double(), rtol=1e-5, atol=1e-5)
    square = torch.ones(13, 13, dtype=torch.float64)
    for part in range(2):
        add_gram(square, x[32 * part :][:32].view(4, 8, 13))
    torch.testing.assert_close(complete_gram(square), 1 + x.double().T @ x.double(), rtol=1e-5, atol=1e-5)


def test_a_product_of_one_block_has_the_bits_of_a_whole_one() -> None:
    parts, total = [torch.randn(2, 100, 1536) for _ in range(3)], torch.zeros(1536, 1536, dtype=torch.float64)
    for part in parts:
        add_product(total, part, part)
    flat = [part.flatten(0, 1) for part in parts]
    assert torch.equal(total, sum((part.T @ part).double() for part in flat))


def test_a_gram_sum_needs_a_block_beside_itself_and_no_copy() -> None:
    """Of 36 million elements a product in float32 and its float64 copy would be 430 MB."""
    x, total = torch.randn(8, 6000), torch.ones(6000, 6000, dtype=torch.float64)
    block_bytes = module.GRAM_BLOCK_ELEMENTS * 12
    with anonymous_growth() as risen:
        add_gram(total, x)
        complete_gram(total)
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


def sums(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return rows[1].T @ rows[0], rows[0].T @ rows[0]


def task(tokens: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Rows]:
    """A projection W of 12 inputs, another V, and targets V y with noise."""
    generator = torch.Generator().manual_seed(seed)
    weight, other = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    inputs = correlated(tokens, 12, seed)
    targets = inputs @ other.T + noise * torch.randn(tokens, 5, generator=generator, dtype=torch.float64)
    return weight, other, (inputs, targets)


def halved(rows: Rows) -> tuple[Rows, Rows]:
    inputs, targets = rows
    return (inputs[::2], targets[::2]), (inputs[1::2], targets[1::2])


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("tokens", [10, 40, 400])
def test_a_correction_is_the_fit_that_does_best_on_the_other_half(tokens: int, noise: float) -> None:
    """Against every strength tried out, with as few tokens as make the sums singular too."""
    weight, _, rows = task(tokens, noise)
    even, odd = halved(rows)
    ridge = Ridge(share=0.01, unit="median")
    expected = cross_validated(weight, (even, odd), ridge)
    found = corrected(weight, (sums(even), sums(odd)), ridge)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)


def test_a_correction_finds_what_is_there() -> None:
    weight, other, rows = task(400, 0.1)
    found = corrected(weight, tuple(map(sums, halved(rows))), Ridge(share=1e-6))
    torch.testing.assert_close(found, other.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_correction_does_not_fit_noise(seed: int) -> None:
    """Targets that the inputs say nothing about: other text is hardly worse off, where least squares would be much."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    inputs = correlated(48, 12, seed)
    targets = inputs @ weight.T + 30 * torch.randn(48, 5, generator=generator, dtype=torch.float64)
    (text, other), ridge = halved((inputs, targets)), Ridge(share=0.01)
    quarters = halved(text)
    plain, fitted = squared_error(weight, other), pulled(weight, text, 1e-6)
    found = corrected(weight, (sums(quarters[0]), sums(quarters[1])), ridge).double()
    assert squared_error(fitted, other) > 1.3 * plain
    assert squared_error(found, other) < 1.1 * plain


def test_without_other_text_nothing_is_corrected() -> None:
    weight, _, rows = task(40, 1.0)
    nothing = (torch.zeros(5, 12, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64))
    assert torch.equal(corrected(weight, (sums(rows), nothing), Ridge(share=0.01)), weight.float())


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


def test_errors_of_all_widths_are_what_the_refit_of_each_leaves() -> None:
    x, ridge = correlated(40, 9), Ridge(share=0.01)
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    errors, whole = nested_errors(weight, gram(x), order, ridge), damped(gram(x), ridge)
    assert errors[0] == 1 and errors[-1] == 0 and (errors.diff() <= 0).all()
    for count in range(1, 9):
        kept = order[:count].sort().values
        left = weight.clone()
        left[:, kept] -= refit(weight, gram(x), kept, ridge).double()
        error = (left @ whole * left).sum() / (weight @ whole * weight).sum()
        assert errors[count] == pytest.approx(float(error), rel=1e-5)
    assert nested_errors(torch.zeros(5, 9), gram(x), order, ridge).tolist() == [0.0] * 10


def test_errors_beside_channels_whose_sums_drown_the_others_in_rounding() -> None:
    """Six channels that fire together at one token: in float32 not positive definite with the median's damping."""
    generator = torch.Generator().manual_seed(0)
    x = 0.02 * torch.randn(1024, 256, generator=generator)
    x[0, :6] += 6000 * torch.rand(6, generator=generator)
    sums, ridge = gram(x).float(), Ridge(share=1e-4, unit="median")
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(damped(sums, ridge, torch.float64))
    errors = nested_errors(torch.randn(8, 256, generator=generator), sums, torch.arange(256).flip(0), ridge)
    assert errors[0] == 1 and errors[-1] == 0 and (errors.diff() <= 0).all()
