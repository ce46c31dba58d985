"""Fit the kept weights to the output of the uncut layer: Gram matrices of its inputs, and least squares on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerGram:
    """Sums over calibration tokens of ``x x^T`` for the inputs of a layer's two output projections.

    Additive like all statistics: the sum over ranks is the merge.

    Attributes:
        attention_output: (heads * head_dim, heads * head_dim), of the input of ``o_proj``.
        intermediate: (intermediate_size, intermediate_size), of the input of ``down_proj``.
    """

    attention_output: Tensor
    intermediate: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {"attention_output": self.attention_output, "intermediate": self.intermediate}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerGram:
        """Build from named tensors: the inverse of `to_tensors`."""
        return cls(attention_output=tensors["attention_output"], intermediate=tensors["intermediate"])


GRAM_BLOCK_ELEMENTS = 1 << 23  # of a product in float32, and of its float64 copy where the device adds no mixed types
GRAM_BANDS = 4  # of rows, at least; each begins at the diagonal, and all of them are 5/8 of the products


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the sum of ``x y^T`` over tokens, (..., C), (..., D), to `total`, (C, D) float64, by float32 products.

    A micro-batch has the same content on any number of ranks, so sums of these over micro-batches and
    ranks differ by the order of float64 additions only. The product is made some rows at a time: beside the sum it
    would be as large as half of it.
    """
    x, y = _rows_of_tokens(left), _rows_of_tokens(right)
    rows = max(1, GRAM_BLOCK_ELEMENTS // y.shape[-1])
    for start in range(0, x.shape[-1], rows):
        total[start : start + rows] += x[:, start : start + rows].T @ y


def add_gram(total: Tensor, activation: Tensor) -> None:
    """Add the sum of ``x x^T`` over tokens, (..., C), to the upper triangle of `total`, (C, C) float64.

    As `add_product`. What is below the diagonal means nothing until `complete_gram` fills it in, once, at the end.
    """
    x = _rows_of_tokens(activation)
    for start, stop in _bands(x.shape[-1]):
        total[start:stop, start:] += x[:, start:stop].T @ x[:, start:]


def complete_gram(total: Tensor) -> Tensor:
    """Fill in what is below the diagonal of a sum by `add_gram`, in place, and return it."""
    for start, stop in _bands(len(total)):
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def _rows_of_tokens(activation: Tensor) -> Tensor:
    return activation.detach().reshape(-1, activation.shape[-1]).float()


def band_rows(channels: int) -> int:
    """Return how many rows of a symmetric matrix are summed at a time; the product of the first has all columns."""
    return max(1, min(-(-channels // GRAM_BANDS), GRAM_BLOCK_ELEMENTS // channels))


def _bands(channels: int) -> list[tuple[int, int]]:
    """Return first and last row (exclusive) of the bands that a symmetric matrix is summed in."""
    rows = band_rows(channels)
    return [(start, min(start + rows, channels)) for start in range(0, channels, rows)]


RIDGE_UNITS = ("mean", "median")


class Damping(Protocol):
    """The settings of prune.method that say how least squares are damped."""

    ridge: float
    ridge_unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ridge:
    """How strongly least squares are damped.

    Attributes:
        share: relative to the unit.
        unit: of a Gram matrix's diagonal, "mean" or "median". A few channels that are huge at one token of a sequence,
            as behind an attention sink, own the mean and leave the median as it is.
    """

    share: float
    unit: str = "mean"

    def __post_init__(self) -> None:
        assert self.share > 0 and self.unit in RIDGE_UNITS, self

    @classmethod
    def of(cls, settings: Damping) -> Ridge:
        return cls(share=settings.ridge, unit=settings.ridge_unit)


def damping(gram_matrix: Tensor, ridge: Ridge) -> float:
    """Return what to add to the diagonal.

    Where its median is zero, because most channels were never active, the mean takes its place; 1 where none ever was.
    """
    diagonal = gram_matrix.diagonal().double()
    median = float(diagonal.median()) if ridge.unit == "median" else 0.0
    unit = median if median > 0 else float(diagonal.mean())
    return ridge.share * unit if unit > 0 else 1.0


def damped(gram_matrix: Tensor, ridge: Ridge, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy, in another dtype if one is given, with the damping on its diagonal: positive definite."""
    copy = gram_matrix.to(dtype or gram_matrix.dtype, copy=True)
    copy.diagonal().add_(damping(gram_matrix, ridge))
    return copy


def refit(weight: Tensor, gram: Tensor, transform: Tensor, ridge: Ridge) -> Tensor:
    """Return the weights after the cut: ``W G T^T (T G T^T)^-1`` with ``G`` the damped Gram matrix; float32.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        transform: (kept, inputs), or (kept,) int64 indices of the inputs that stay.
        ridge: of the Gram matrix.

    Returns:
        (outputs, kept).
    """
    whole = damped(gram, ridge, torch.float64)
    if transform.dtype == torch.int64:
        cross, own = whole[:, transform], whole[transform.unsqueeze(1), transform]
    else:
        cross = whole @ transform.double().T
        own = transform.double() @ cross
    return torch.linalg.solve(own, (weight.double() @ cross).T).T.float().contiguous()


def nested_errors(weight: Tensor, gram: Tensor, order: Tensor, ridge: Ridge) -> Tensor:
    """Return the squared error of `refit`, relative to the output, for every number of inputs: (inputs + 1,) float64.

    With the inputs in their order, ``G = L L^T``, and what the first k of them cannot explain is the squared norm of
    the columns of ``W L`` behind the first k: a single factorisation serves all numbers.

    Args:
        weight: W, (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        order: (inputs,) int64, of the inputs; the last of them goes first.
        ridge: as in `refit`.
    """
    ordered = damped(gram[order.unsqueeze(1), order], ridge, torch.float64)
    columns = (weight[:, order].double() @ cholesky_factor(ordered)).square().sum(dim=0)
    errors = torch.cat([columns.flip(0).cumsum(0).flip(0), columns.new_zeros(1)])
    return errors / errors[0].clamp_min(torch.finfo(torch.float64).tiny)


MOST_RAISED = 10  # powers of ten of the damping that float32 noise is worth


def cholesky_factor(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a damped matrix; one that rounding has made indefinite is damped further.

    Sums are kept in float32: beside a channel that fires a thousand times as strong as others, what is rounded there is
    more than the damping that these others ask for.
    """
    noise = torch.finfo(torch.float32).eps * matrix.diagonal().max()
    for _ in range(MOST_RAISED):
        factor, fails = torch.linalg.cholesky_ex(matrix)
        if not fails:
            return factor
        matrix.diagonal().add_(noise)
        noise = 10 * noise
    return torch.linalg.cholesky(matrix)


Sums = tuple[Tensor, Tensor]  # of `corrected`, over one half of the text
# Strengths that `corrected` tries, in units of the damping. A correction of what earlier layers have lost is mostly
# noise: each fit adds (inputs / tokens) of the loss to other text, and the next layer carries it on.
STRENGTHS = torch.logspace(0, 5, 11, dtype=torch.float64)


def corrected(weight: Tensor, halves: tuple[Sums, Sums], ridge: Ridge) -> Tensor:
    """Bring a projection nearer to a target t, as far as it helps on text that it was not fitted on; float32.

    Minimises ``sum |t - W' y|^2 + s |W' - W|^2`` over both halves of the text. The strength s is the one whose fit on
    either half leaves the least error on the other; where no fit beats W there, W stays.

    Args:
        weight: W, (outputs, inputs).
        halves: of each half of the text ``sum t y^T``, (outputs, inputs), and ``sum y y^T``, (inputs, inputs).
        ridge: its damping is the least strength that is tried.
    """
    weight = weight.double()
    (error, gram), (other_error, other_gram) = (
        (cross.double() - weight @ gram.double(), gram.double()) for cross, gram in halves
    )
    whole = gram + other_gram
    strengths = damping(whole, ridge) * STRENGTHS.to(whole.device)
    change = _held_out_change((error, gram), (other_error, other_gram), strengths)
    change += _held_out_change((other_error, other_gram), (error, gram), strengths)
    best = int(change.argmin())
    if change[best] < 0:
        whole.diagonal().add_(strengths[best])
        weight = weight + torch.linalg.solve(whole, (error + other_error).T).T
    return weight.float().contiguous()


def _held_out_change(fitted: Sums, other: Sums, strengths: Tensor) -> Tensor:
    """Return by how much a correction that was fitted on one half changes the squared error on the other.

    Args:
        fitted: the errors' products with the inputs ``sum (t - W y) y^T``, and the Gram matrix.
        strengths: to try, (strengths,); so is the result.
    """
    values, vectors = torch.linalg.eigh(fitted[1])
    step = fitted[0] @ vectors  # (outputs, directions), divided by value and strength below
    towards = (step * (other[0] @ vectors)).sum(dim=0)
    spread = vectors.T @ other[1] @ vectors
    spread *= step.T @ step
    shrunk = 1 / (values.clamp_min(0) + strengths.unsqueeze(1))  # (strengths, directions)
    return ((shrunk @ spread) * shrunk).sum(dim=1) - 2 * shrunk @ towards
