"""The least squares of pruning on rows of data, a row a token, by plain lstsq: no Gram matrix, no eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transact.pruning.refit import STRENGTHS, Ridge, damping

Rows = tuple[Tensor, Tensor]  # inputs y, (tokens, inputs), and targets t, (tokens, outputs)


def refitted(weight: Tensor, rows: Tensor, kept: Sequence[int], ridge: Ridge) -> Tensor:
    """Fit the kept inputs to what all give; the damping is every input once more, as a row of its own."""
    root = damping(rows.T @ rows, ridge) ** 0.5
    rows = torch.cat([rows, root * torch.eye(rows.shape[1]).to(rows)])
    return torch.linalg.lstsq(rows[:, list(kept)], rows @ weight.T).solution.T


def pulled(weight: Tensor, rows: Rows, strength: float) -> Tensor:
    """Fit targets, with a pull of some strength towards `weight`."""
    inputs, targets = rows
    root = strength**0.5
    left = torch.cat([inputs, root * torch.eye(inputs.shape[1]).to(inputs)])
    return torch.linalg.lstsq(left, torch.cat([targets, root * weight.T])).solution.T


def squared_error(weight: Tensor, rows: Rows) -> float:
    return float((rows[1] - rows[0] @ weight.T).square().sum())


def cross_validated(weight: Tensor, halves: tuple[Rows, Rows], ridge: Ridge) -> Tensor:
    """Try every strength on each half, judge it on the other, and fit both with the best; or keep the weight."""
    whole = tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
    unit = damping(whole[0].T @ whole[0], ridge)
    best, least = weight, sum(squared_error(weight, each) for each in halves)
    for strength in (unit * STRENGTHS).tolist():
        error = sum(
            squared_error(pulled(weight, one, strength), other) for one, other in (halves, tuple(reversed(halves)))
        )
        if error < least:
            best, least = pulled(weight, (whole[0], whole[1]), strength), error
    return best
