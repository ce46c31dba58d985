"""Least squares: give an output projection the weights that make up for what was cut from its input.

Let ``x`` be the input of a projection ``W`` before the cut and ``T x`` what is left of it, where T
selects channels or changes the basis. The refitted weights minimise, over the calibration tokens,

    sum |W x - W' T x|^2  +  damping * |W - W' T|^2

The second term pulls W' towards the plain cut, not towards zero: with little calibration text the refit
does little, instead of harm. Both terms together are least squares on the damped Gram matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transact.prune.gram import damping


def refit(weight: Tensor, gram: Tensor, transform: Tensor, ridge: float) -> Tensor:
    """Weights after the cut: ``W G T^T (T G T^T)^-1`` with ``G`` the damped Gram matrix; float32.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        transform: (kept, inputs), or (kept,) int64 indices of the inputs that stay.
        ridge: damping, relative to the mean of the Gram matrix's diagonal.

    Returns:
        (outputs, kept).
    """
    return refit_shifted(weight, gram, gram, transform, ridge, inputs_are_cut=False)


def refit_shifted(
    weight: Tensor, cross: Tensor, gram: Tensor, transform: Tensor, ridge: float, *, inputs_are_cut: bool = True
) -> Tensor:
    """The refit where the kept inputs have moved away: earlier layers are cut already.

    Minimises ``sum |W x - W' y|^2 + damping * |W - W' T|^2`` with y the kept inputs as they are now.

    Args:
        weight: (outputs, inputs).
        cross: (inputs, kept), sum of ``x y^T``; where `inputs_are_cut` is false (inputs, inputs), still to be cut.
        gram: (kept, kept), sum of ``y y^T``; where `inputs_are_cut` is false (inputs, inputs).
        transform: (kept, inputs), or (kept,) indices.
        ridge: damping, relative to the mean of the Gram matrix's diagonal.

    Returns:
        (outputs, kept) float32.
    """
    weight, cross, gram = weight.double(), cross.double(), gram.double()
    strength = damping(gram, ridge)
    if transform.dtype == torch.int64:
        if not inputs_are_cut:
            cross, gram = cross[:, transform], gram[transform][:, transform]
        pull, overlap = weight[:, transform], torch.eye(len(transform), dtype=torch.float64, device=gram.device)
    else:
        transform = transform.double()
        if not inputs_are_cut:
            cross, gram = cross @ transform.T, transform @ gram @ transform.T
        pull, overlap = weight @ transform.T, transform @ transform.T
    right = weight @ cross + strength * pull  # (outputs, kept)
    solved = torch.linalg.solve(gram + strength * overlap, right.T)
    return solved.T.float().contiguous()
