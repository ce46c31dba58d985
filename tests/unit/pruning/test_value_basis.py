"""A change of basis is exact, and SVD is the best one there is."""

from __future__ import annotations

import pytest
import torch

from transact.geometry import Geometry
from transact.pruning.slicing import ValueBasis, head_covariances, output_transform, pca_basis, svd_basis

GEOMETRY = Geometry(
    hidden_size=10,
    num_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=4,
    vocab_size=5,
    tied_embeddings=True,
)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (tokens, heads * dim) and o_proj's weight, float64."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 24, generator=generator, dtype=torch.float64) @ mixing
    return x, torch.randn(10, 24, generator=generator, dtype=torch.float64)


def rebuilt(basis: ValueBasis, x: torch.Tensor) -> torch.Tensor:
    """Every head's activations after into and back, head by head."""
    heads = x.view(-1, 4, 6)
    group = [0, 0, 1, 1]
    return torch.stack([heads[:, h] @ basis.into[g].T @ basis.back[g].T for h, g in enumerate(group)], dim=1)


def test_covariances_are_the_own_blocks_of_a_group() -> None:
    x, _ = example()
    heads = x.view(-1, 4, 6)
    expected = torch.stack([sum(heads[:, h].T @ heads[:, h] for h in group) for group in ((0, 1), (2, 3))])
    torch.testing.assert_close(head_covariances(x.T @ x, GEOMETRY), expected)


@pytest.mark.parametrize("kind", ["svd", "pca"])
def test_a_full_basis_changes_nothing(kind: str) -> None:
    x, output = example()
    basis = svd_basis(output, x.T @ x, GEOMETRY, 6) if kind == "svd" else pca_basis(x.T @ x, GEOMETRY, 6)
    torch.testing.assert_close(rebuilt(basis, x), x.view(-1, 4, 6))


@pytest.mark.parametrize("kept", [2, 4])
def test_rows_are_orthonormal_and_undone_by_back(kept: int) -> None:
    """Orthonormal: values keep their scale, so one learning rate still suits v and o."""
    x, output = example()
    basis = svd_basis(output, x.T @ x, GEOMETRY, kept)
    identity = torch.eye(kept, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(basis.into @ basis.into.mT, identity)
    torch.testing.assert_close(basis.into @ basis.back, identity)


def test_svd_reaches_the_lower_bound_of_eckart_young() -> None:
    """One head a group: no projection of its values gives less error in the output than a truncated SVD."""
    geometry = Geometry.from_dict(GEOMETRY.to_dict() | {"num_attention_heads": 2})
    x, output = example()
    x, output = x[:, :12], output[:, :12]
    basis = svd_basis(output, x.T @ x, geometry, 3)
    for head in range(2):
        values, weight = x[:, head * 6 : head * 6 + 6], output[:, head * 6 : head * 6 + 6]
        error = values @ weight.T - values @ basis.into[head].T @ basis.back[head].T @ weight.T
        bound = torch.linalg.svdvals(values @ weight.T)[3:].square().sum()
        torch.testing.assert_close(error.square().sum(), bound)


def test_svd_beats_pca_on_the_output_and_pca_wins_on_the_values() -> None:
    x, output = example()
    heads, weight = x.view(-1, 4, 6), output.view(10, 4, 6)

    def errors(basis: ValueBasis) -> tuple[float, float]:
        missing = heads - rebuilt(basis, x)
        per_head = torch.einsum("thd,ohd->hto", missing, weight)
        return float(per_head.square().sum()), float(missing.square().sum())

    svd, pca = errors(svd_basis(output, x.T @ x, GEOMETRY, 2)), errors(pca_basis(x.T @ x, GEOMETRY, 2))
    assert svd[0] < pca[0] and pca[1] < svd[1]


def test_transform_is_block_diagonal() -> None:
    x, output = example()
    basis = svd_basis(output, x.T @ x, GEOMETRY, 2)
    transform = output_transform(basis, 2)
    assert transform.shape == (8, 24)
    torch.testing.assert_close(transform[2:4, 6:12], basis.into[0])
    torch.testing.assert_close(transform[4:6, 12:18], basis.into[1])
    assert transform[2:4, :6].abs().max() == 0


@pytest.mark.parametrize("scale", [0.0, 1e-10])
def test_dead_heads_give_a_finite_basis(scale: float) -> None:
    x, output = example()
    x = torch.cat([x[:, :12] * scale, x[:, 12:]], dim=1)
    basis = svd_basis(output, x.T @ x, GEOMETRY, 3)
    assert basis.into.isfinite().all() and basis.back.isfinite().all()
