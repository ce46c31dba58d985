"""Gram matrices of transitional activations, and the damping that makes them safe to invert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        """Inverse of `to_tensors`."""
        return cls(attention_output=tensors["attention_output"], intermediate=tensors["intermediate"])


def gram(activation: Tensor, other: Tensor | None = None) -> Tensor:
    """(..., C), (..., D) -> (C, D): the sum over tokens of ``x y^T``; float32 products, float64 result.

    A micro-batch has the same content on any number of ranks, so sums of these over micro-batches and
    ranks differ by the order of float64 additions only. Without `other` it is ``x x^T``.
    """
    left = activation.detach().reshape(-1, activation.shape[-1]).float()
    right = left if other is None else other.detach().reshape(-1, other.shape[-1]).float()
    return (left.T @ right).double()


def damping(gram_matrix: Tensor, ridge: float) -> float:
    """What to add to the diagonal: ``ridge`` times its mean; 1 where nothing was ever active."""
    mean = float(gram_matrix.diagonal().double().mean())
    return ridge * mean if mean > 0 else 1.0


def damped(gram_matrix: Tensor, ridge: float) -> Tensor:
    """A copy with the damping on its diagonal: positive definite where ``ridge`` is above zero."""
    copy = gram_matrix.clone()
    copy.diagonal().add_(damping(gram_matrix, ridge))
    return copy
