"""From a plan to smaller weight matrices: pure functions on the weights of one layer.

A projection's weight is (outputs, inputs). Heads lie one after the other along the attention's
inner dimension, each ``head_dim`` wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transact.prune.gram import LayerGram
from transact.prune.plan import PrunePlan
from transact.prune.refit import refit
from transact.prune.value_basis import ValueBasis, block_diagonal, output_transform, pca_basis, svd_basis
from transact.prune.weights import LayerWeights


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
    weights: LayerWeights, plan: PrunePlan, layer: int, gram: LayerGram | None = None, ridge: float | None = None
) -> LayerWeights:
    """The weights of one layer after the cut, float32.

    Args:
        weights: of the layer, before.
        plan: what to keep.
        layer: its index.
        gram: of the layer; needed for a value basis from data and for the refit.
        ridge: damping of the refit; None for the plain cut.
    """
    attention = cut_attention(weights, plan, layer, gram)
    channels = channel_indices(plan, layer).to(weights.down.device)
    output, down = attention.output, weights.down.float()[:, channels]
    if ridge is not None:
        assert gram is not None
        # Nothing was cut: the plain weights are the exact answer.
        if plan.target.num_attention_heads * plan.target.head_dim < weights.output.shape[1]:
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


def cut_attention(weights: LayerWeights, plan: PrunePlan, layer: int, gram: LayerGram | None = None) -> AttentionCut:
    """q, k, v and o after the cut. gram: needed where the plan's value basis comes from data.

    Where queries and keys are normalised, their projections' scale means nothing, so the norms' weights carry it. A
    norm over the kept dims S of d divides by their own size instead of that of all d dims: the parent with the cut
    rows zeroed differs by the constant sqrt(d / |S|) alone (but for the norm's epsilon, 1e-6 beside the mean
    square), which is put right exactly. The dense parent divides by more: by a factor that varies from token to
    token, sqrt of the share of S in the square, of which only a constant can be kept. It is the plan's gain, the
    root of the mean share on the calibration text.
    """
    rows, columns = value_rows(plan, layer), output_columns(plan, layer)
    value, output, transform = weights.value.float()[rows], weights.output.float()[:, columns], columns
    if plan.value_basis != "dims":
        assert gram is not None
        basis = _basis(weights, plan, gram)
        value, output, transform = _change_basis(weights, plan, basis)
    scale = query_scale(plan)
    return AttentionCut(
        query=weights.query.float()[query_rows(plan, layer)] * (scale if weights.query_norm is None else 1.0),
        key=weights.key.float()[key_rows(plan, layer)],
        value=value,
        output=output,
        transform=transform.to(weights.output.device),
        # The queries' scale and the constant of the smaller norm undo each other.
        query_norm=_cut_norm(weights.query_norm, plan, layer, plan.query_norm_gains),
        key_norm=_cut_norm(weights.key_norm, plan, layer, plan.key_norm_gains, 1 / scale),
    )


def _cut_norm(
    weight: Tensor | None, plan: PrunePlan, layer: int, gains: Sequence[float] | None, scale: float = 1.0
) -> Tensor | None:
    """The weight of a norm of queries or keys; the heads share it, so they must share their dims."""
    if weight is None:
        return None
    heads = set(plan.query_key_dims[layer])
    assert len(heads) == 1 and plan.rotary == "kept", "a shared norm needs the same rotary pairs in every head"
    gain = gains[layer] if gains is not None else 1.0
    return weight.float()[list(heads.pop())] * (gain * scale)


def query_rows(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of q_proj to keep: (target.num_attention_heads * target.head_dim,) int64."""
    return _head_indices(plan.query_heads[layer], _per_query_head(plan, plan.query_key_dims[layer]), plan)


def key_rows(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of k_proj to keep: (target.num_key_value_heads * target.head_dim,) int64."""
    return _head_indices(plan.key_value_heads[layer], plan.query_key_dims[layer], plan)


def value_rows(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of v_proj to keep: (target.num_key_value_heads * target.head_dim,) int64."""
    return _head_indices(plan.key_value_heads[layer], plan.value_dims[layer], plan)


def output_columns(plan: PrunePlan, layer: int) -> Tensor:
    """Columns of o_proj to keep: (target.num_attention_heads * target.head_dim,) int64.

    A query head reads the values of its group's key-value head, so it keeps that head's dims.
    """
    return _head_indices(plan.query_heads[layer], _per_query_head(plan, plan.value_dims[layer]), plan)


def channel_indices(plan: PrunePlan, layer: int) -> Tensor:
    """Rows of gate_proj and up_proj, columns of down_proj: (target.intermediate_size,) int64."""
    return torch.tensor(plan.channels[layer], dtype=torch.int64)


def query_scale(plan: PrunePlan) -> float:
    """Factor for q_proj, so that stock attention keeps the temperature it was trained with.

    Stock code divides logits by sqrt(head_dim) of the *new* head: sqrt(r/d) / sqrt(r) is the
    old 1 / sqrt(d). TransAct's code, which recreates the rotary embedding, leaves q as it is.
    """
    return math.sqrt(plan.target.head_dim / plan.source.head_dim) if plan.rotary == "kept" else 1.0


def _basis(weights: LayerWeights, plan: PrunePlan, gram: LayerGram) -> ValueBasis:
    if plan.value_basis == "svd":
        return svd_basis(weights.output, gram.attention_output, plan.source, plan.target.head_dim)
    return pca_basis(gram.attention_output, plan.source, plan.target.head_dim)


def _change_basis(weights: LayerWeights, plan: PrunePlan, basis: ValueBasis) -> tuple[Tensor, Tensor, Tensor]:
    """v_proj and o_proj in the new basis, and the transform of o_proj's input."""
    assert plan.target.num_attention_heads == plan.source.num_attention_heads, "a basis and whole heads do not mix"
    group = plan.source.queries_per_key_value_head
    heads = weights.value.double().view(plan.source.num_key_value_heads, plan.source.head_dim, -1)
    value = (basis.into @ heads).flatten(0, 1)
    back = block_diagonal(basis.back.repeat_interleave(group, dim=0))
    output = weights.output.double() @ back
    return value.float(), output.float(), output_transform(basis, group)


def _per_query_head(plan: PrunePlan, dims: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [head for head in dims for _ in range(plan.target.queries_per_key_value_head)]


def _head_indices(heads: Sequence[int], dims_per_head: Sequence[Sequence[int]], plan: PrunePlan) -> Tensor:
    """Flatten dims within kept heads to positions along all heads of the source."""
    within = torch.tensor(dims_per_head, dtype=torch.int64)  # (heads, kept)
    starts = torch.tensor(heads, dtype=torch.int64).unsqueeze(1) * plan.source.head_dim  # (heads, 1)
    return (starts + within).flatten()
