"""Cut the weights of one layer to the units that stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.pair_gains import fold_gains
from transact.pruning.refit import LayerGram, Ridge, refit
from transact.pruning.selection import Selection
from transact.pruning.weights import LayerWeights


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
    """Sum the diagonal blocks of each group's query heads: (heads * d, heads * d) -> (key-value heads, d, d)."""
    heads, dim = geometry.num_attention_heads, geometry.head_dim
    blocks = gram.double().view(heads, dim, heads, dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (heads, d, d)
    return blocks.reshape(geometry.num_key_value_heads, geometry.queries_per_key_value_head, dim, dim).sum(dim=1)


def svd_basis(output: Tensor, gram: Tensor, geometry: Geometry, kept: int) -> ValueBasis:
    """Return the basis of least error in attention's output: truncated SVD of ``O C^(1/2)`` in each key-value head.

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
    """Return the leading principal components of each key-value head's mixed values; arguments as in `svd_basis`."""
    leading = torch.linalg.eigh(head_covariances(gram, geometry)).eigenvectors.flip(-1)[..., :kept]
    return ValueBasis(into=leading.mT.contiguous(), back=leading)


def output_transform(basis: ValueBasis, queries_per_key_value_head: int) -> Tensor:
    """Return T of the whole o_proj input: block diagonal, (heads * kept, heads * head_dim) float64."""
    blocks = basis.into.repeat_interleave(queries_per_key_value_head, dim=0)
    return block_diagonal(blocks)


def block_diagonal(blocks: Tensor) -> Tensor:
    """Put blocks on the diagonal of a matrix: (blocks, rows, columns) -> (blocks * rows, blocks * columns)."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _output_energy(output: Tensor, geometry: Geometry) -> Tensor:
    """Sum O_h^T O_h over a group's query heads: (key-value heads, d, d)."""
    heads = output.double().view(output.shape[0], geometry.num_key_value_heads, -1, geometry.head_dim)
    return torch.einsum("ogqd,ogqe->gde", heads, heads)


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and its inverse; directions that were never used get a small floor instead of zero."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) * 1e-8
    scale = values.maximum(floor).sqrt()
    return (vectors * scale.unsqueeze(-2)) @ vectors.mT, (vectors / scale.unsqueeze(-2)) @ vectors.mT


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionCut:
    """Attention after the cut, before any refit; float32.

    Attributes:
        query: as in `LayerWeights`, with the target's dimensions; so are key, value, output and the norms.
        transform: what became of o_proj's input: (kept,) int64 indices, or the matrix (kept, inputs) float64.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    transform: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None


def cut_layer(
    weights: LayerWeights, selection: Selection, layer: int, gram: LayerGram | None = None, ridge: Ridge | None = None
) -> LayerWeights:
    """Return the weights of one layer after the cut, float32.

    Args:
        weights: of the layer, before.
        selection: what to keep.
        layer: its index.
        gram: of the layer; needed for a value basis from data and for the refit.
        ridge: damping of the refit; None for the plain cut.
    """
    attention = cut_attention(weights, selection, layer, gram)
    channels = channel_indices(selection, layer).to(weights.down.device)
    output, down = attention.output, weights.down.float()[:, channels]
    if ridge is not None:
        assert gram is not None
        # Where nothing was cut, the plain weights are the exact answer.
        if output.shape[1] < weights.output.shape[1]:
            output = refit(weights.output, gram.attention_output, attention.transform, ridge)
        if len(channels) < weights.down.shape[1]:
            down = refit(weights.down, gram.intermediate, channels, ridge)
    return LayerWeights(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        output=output.contiguous(),
        gate=weights.gate.float()[channels],
        up=weights.up.float()[channels],
        down=down.contiguous(),
        query_norm=attention.query_norm,
        key_norm=attention.key_norm,
    )


def cut_attention(
    weights: LayerWeights, selection: Selection, layer: int, gram: LayerGram | None = None
) -> AttentionCut:
    """Return q, k, v and o after the cut.

    Where queries and keys are normalised, their projections' scale means nothing, so the norms' weights carry it. A
    norm over the kept dims S of d divides by their own size instead of that of all d dims: the parent with the cut
    rows zeroed differs by the constant sqrt(d / |S|) alone (but for the norm's epsilon, 1e-6 beside the mean
    square), which is put right exactly. The dense parent divides by more: by a factor that varies from token to
    token, sqrt of the share of S in the square, of which only a constant can be kept. It is the selection's gain, the
    root of the mean share on the calibration text.

    Args:
        gram: needed where the selection's value basis comes from data.
    """
    rows, columns = value_rows(selection, layer), output_columns(selection, layer)
    value, output, transform = weights.value.float()[rows], weights.output.float()[:, columns], columns
    if selection.value_basis != "dims":
        assert gram is not None
        basis = _basis(weights, selection, layer, gram)
        value, output, transform = _change_basis(weights, selection, layer, basis)
    scale = query_scale(selection)
    query = weights.query.float()[query_rows(selection, layer)] * (scale if weights.query_norm is None else 1.0)
    if selection.pair_gains is not None:
        assert weights.query_norm is None, "a norm that the heads share takes no gains of theirs"
        query = fold_gains(query, torch.tensor(selection.pair_gains[layer], dtype=torch.float64))
    return AttentionCut(
        query=query,
        key=weights.key.float()[key_rows(selection, layer)],
        value=value,
        output=output,
        transform=transform.to(weights.output.device),
        # The queries' scale and the constant of the smaller norm undo each other.
        query_norm=_cut_norm(weights.query_norm, selection, layer, selection.query_norm_gains),
        key_norm=_cut_norm(weights.key_norm, selection, layer, selection.key_norm_gains, 1 / scale),
    )


def _cut_norm(
    weight: Tensor | None, selection: Selection, layer: int, gains: Sequence[float] | None, scale: float = 1.0
) -> Tensor | None:
    """Cut the weight of a norm of queries or keys; the heads share it, so they must share their dims."""
    if weight is None:
        return None
    heads = set(selection.query_key_dims[layer])
    assert len(heads) == 1 and selection.rotary == "kept", "a shared norm needs the same rotary pairs in every head"
    gain = gains[layer] if gains is not None else 1.0
    return weight.float()[list(heads.pop())] * (gain * scale)


def query_rows(selection: Selection, layer: int) -> Tensor:
    """Return the rows of q_proj to keep: (num_attention_heads * head_dim of the cut layer,) int64."""
    return _positions(
        selection.query_heads[layer],
        _per_query_head(selection, selection.query_key_dims[layer]),
        selection.source.head_dim,
    )


def key_rows(selection: Selection, layer: int) -> Tensor:
    """Return the rows of k_proj to keep: (num_key_value_heads * head_dim of the cut layer,) int64."""
    return _positions(selection.key_value_heads[layer], selection.query_key_dims[layer], selection.source.head_dim)


def value_rows(selection: Selection, layer: int) -> Tensor:
    """Return the rows of v_proj to keep: (num_key_value_heads * head_dim of the cut layer,) int64."""
    return _positions(selection.key_value_heads[layer], selection.value_dims[layer], selection.source.head_dim)


def output_columns(selection: Selection, layer: int) -> Tensor:
    """Return the columns of o_proj to keep: (num_attention_heads * head_dim of the cut layer,) int64.

    A query head reads the values of its group's key-value head, so it keeps that head's dims.
    """
    return _positions(
        selection.query_heads[layer], _per_query_head(selection, selection.value_dims[layer]), selection.source.head_dim
    )


def channel_indices(selection: Selection, layer: int) -> Tensor:
    """Return the rows of gate_proj and up_proj, columns of down_proj, to keep: (channels,) int64."""
    return torch.tensor(selection.channels[layer], dtype=torch.int64)


def query_scale(selection: Selection) -> float:
    """Return the factor for q_proj with which stock attention keeps the temperature it was trained with.

    Stock code divides logits by sqrt(head_dim) of the *new* head: sqrt(r/d) / sqrt(r) is the
    old 1 / sqrt(d). TransAct's code, which recreates the rotary embedding, leaves q as it is.
    """
    return math.sqrt(selection.target.head_dim / selection.source.head_dim) if selection.rotary == "kept" else 1.0


def _basis(weights: LayerWeights, selection: Selection, layer: int, gram: LayerGram) -> ValueBasis:
    source, kept = selection.source.of_layer(layer), selection.target.head_dim
    if selection.value_basis == "svd":
        return svd_basis(weights.output, gram.attention_output, source, kept)
    return pca_basis(gram.attention_output, source, kept)


def _change_basis(
    weights: LayerWeights, selection: Selection, layer: int, basis: ValueBasis
) -> tuple[Tensor, Tensor, Tensor]:
    """Return v_proj and o_proj of the heads that stay in the new basis, and the transform of o_proj's input."""
    source, kept = selection.source.of_layer(layer), selection.target.head_dim
    group = source.queries_per_key_value_head
    heads = weights.value.double().view(source.num_key_value_heads, source.head_dim, -1)
    value = (basis.into @ heads)[list(selection.key_value_heads[layer])].flatten(0, 1)
    back = block_diagonal(basis.back.repeat_interleave(group, dim=0))
    output = weights.output.double() @ back
    # Of all heads in the new basis, the dims of those that stay.
    stay = _positions(selection.query_heads[layer], [range(kept)] * len(selection.query_heads[layer]), kept)
    return value.float(), output[:, stay].float(), output_transform(basis, group)[stay]


def _per_query_head(selection: Selection, dims: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [head for head in dims for _ in range(selection.target.queries_per_key_value_head)]


def _positions(heads: Sequence[int], dims_per_head: Sequence[Sequence[int]], head_dim: int) -> Tensor:
    """Flatten dims within kept heads to positions along all heads, of head_dim each."""
    within = torch.tensor(dims_per_head, dtype=torch.int64)  # (heads, kept)
    starts = torch.tensor(heads, dtype=torch.int64).unsqueeze(1) * head_dim  # (heads, 1)
    return (starts + within).flatten()
