"""A better basis for values before they are cut: V and O change together, exactly, then lose dims.

A key-value head's values may be written in any basis B (v' = B^-1 v, o' = o B): attention mixes over
positions, never over dims. A good basis puts what matters into few dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transact.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ValueBasis:
    """The change of basis and the cut in one, for every key-value head of a layer; float64.

    Attributes:
        into: (num_key_value_heads, kept, head_dim): v' = into v.
        back: (num_key_value_heads, head_dim, kept): o' = o back; into @ back is the identity.
    """

    into: Tensor
    back: Tensor


def head_covariances(gram: Tensor, geometry: Geometry) -> Tensor:
    """Sum of each group's query heads' own blocks: (heads * d, heads * d) -> (key-value heads, d, d)."""
    heads, dim = geometry.num_attention_heads, geometry.head_dim
    blocks = gram.double().view(heads, dim, heads, dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (heads, d, d)
    return blocks.reshape(geometry.num_key_value_heads, geometry.queries_per_key_value_head, dim, dim).sum(dim=1)


def svd_basis(output: Tensor, gram: Tensor, geometry: Geometry, kept: int) -> ValueBasis:
    """Least error of the attention's output: truncated SVD of ``O C^(1/2)`` in each key-value head.

    With C the covariance of the head's mixed values and O the columns of o_proj that read them, the best
    projection onto `kept` dims is ``C^(1/2) V V^T C^(-1/2)``, V the leading right singular vectors.

    Args:
        output: o_proj's weight, (hidden_size, heads * head_dim).
        gram: (heads * head_dim, heads * head_dim) of o_proj's input.
        geometry: before the cut.
        kept: dims that stay.
    """
    covariance = head_covariances(gram, geometry)
    root, inverse_root = _roots(covariance)
    energy = root @ _output_energy(output, geometry) @ root
    leading = torch.linalg.eigh(energy).eigenvectors.flip(-1)[..., :kept]  # (key-value heads, d, kept)
    # Any basis of the same subspace is as good. Orthonormal rows keep v at its old scale; whitened ones would make
    # v tiny and o huge, which no learning rate suits.
    rotation, triangle = torch.linalg.qr(inverse_root @ leading)
    return ValueBasis(into=rotation.mT.contiguous(), back=root @ leading @ triangle.mT)


def pca_basis(gram: Tensor, geometry: Geometry, kept: int) -> ValueBasis:
    """The leading principal components of each key-value head's mixed values; as in `svd_basis`."""
    leading = torch.linalg.eigh(head_covariances(gram, geometry)).eigenvectors.flip(-1)[..., :kept]
    return ValueBasis(into=leading.mT.contiguous(), back=leading)


def output_transform(basis: ValueBasis, queries_per_key_value_head: int) -> Tensor:
    """T of the whole o_proj input: block diagonal, (heads * kept, heads * head_dim) float64."""
    blocks = basis.into.repeat_interleave(queries_per_key_value_head, dim=0)
    return block_diagonal(blocks)


def block_diagonal(blocks: Tensor) -> Tensor:
    """(blocks, rows, columns) -> (blocks * rows, blocks * columns)."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _output_energy(output: Tensor, geometry: Geometry) -> Tensor:
    """Sum over a group's query heads of O_h^T O_h: (key-value heads, d, d)."""
    heads = output.double().view(output.shape[0], geometry.num_key_value_heads, -1, geometry.head_dim)
    return torch.einsum("ogqd,ogqe->gde", heads, heads)


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and its inverse; directions that were never used get a small floor instead of zero."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) * 1e-8
    scale = values.maximum(floor).sqrt()
    return (vectors * scale.unsqueeze(-2)) @ vectors.mT, (vectors / scale.unsqueeze(-2)) @ vectors.mT
