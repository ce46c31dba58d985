"""Make up for cut rotary pairs in the queries: a scale and a phase for every pair that stays, in closed form.

With queries and keys as complex numbers in the plane of each pair, the logit of a query and a key is the sum of
``Re z_i`` over pairs, ``z_i = conj(q_i) k_i / sqrt(head_dim)``. Under the attention distribution the parts of different
pairs are correlated, so those that stay can stand in for those that go: ``sum Re(c_i z_i)`` over the kept pairs, with
the complex c_i that leave the least variance of the difference (softmax ignores what is the same for all keys). A
complex factor commutes with the rotation, so it is folded into the two rows of q_proj that make the pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.pruning.pair_scores import rotated
from transact.pruning.statistics import Statistic

# Of a sequence, whose queries are looked at: what all of them would cost grows with the square of the length.
POSITIONS = 16
RIDGE = 1e-3  # towards a gain of 1, relative to the mean variance of a kept part
DIGITS = 6  # of a gain: more would only lengthen the record


def query_positions(length: int) -> list[int]:
    """Return the positions whose queries are looked at, evenly spread, the last one among them."""
    return sorted({(number + 1) * length // POSITIONS - 1 for number in range(POSITIONS)} - {-1})


def part_covariances(
    query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, position: Tensor | None, geometry: Geometry
) -> Tensor:
    """Sum over queries the covariance, under their attention, of all pairs' parts ``(Re z, -Im z)`` of a logit.

    A query is the same for all keys, so the parts' covariance is that of the keys, turned and scaled by the query.
    Memory: a few times the rotated queries of the micro-batch, in float32.

    Args:
        query: before rotation, (batch, length, num_attention_heads * head_dim); the other arguments as in
            `pair_scores.logit_variances`.

    Returns:
        (num_attention_heads, head_dim, head_dim) float64: first the real parts of all pairs, then the imaginary ones.
    """
    batch, length, _ = query.shape
    heads, dim, groups = geometry.num_attention_heads, geometry.head_dim, geometry.num_key_value_heads
    keys = torch.cat(rotated(key, cosine, sine, geometry), dim=-1).transpose(1, 2).contiguous()
    places = torch.arange(length, device=query.device)
    total = torch.zeros(heads, dim, dim, dtype=torch.float64, device=query.device)
    for place in query_positions(length):
        own = slice(place, place + 1)
        asked = torch.cat(rotated(query[:, own], cosine[:, own], sine[:, own], geometry), dim=-1) / dim**0.5
        seen = keys[:, :, : place + 1]  # (batch, groups, keys, head_dim)
        logits = asked.view(batch, groups, -1, dim) @ seen.mT
        if position is not None:
            is_before = places[: place + 1] < place - position[:, place]  # (1 or batch, keys): of another document
            logits = logits.masked_fill(is_before[:, None, None], -torch.inf)
        weights = logits.softmax(dim=-1)  # (batch, groups, queries of a group, keys)
        centred = seen.unsqueeze(2) - (weights @ seen).unsqueeze(3)
        centred *= weights.sqrt().unsqueeze(-1)
        spread = (centred.mT @ centred).view(-1, dim, dim)
        total += _turned(spread, asked.view(-1, dim)).view(batch, heads, dim, dim).sum(dim=0)
    return total


def _turned(covariance: Tensor, query: Tensor) -> Tensor:
    """Return the covariance of ``(Re z, -Im z)`` from that of the keys: (queries, head_dim, head_dim).

    query: (queries, head_dim), divided by the root of head_dim.
    """
    x, y = query.unsqueeze(-1).chunk(2, dim=1)
    for _ in range(2):  # rows, then columns: the covariance is symmetric
        of_x, of_y = covariance.chunk(2, dim=1)
        covariance = torch.cat([x * of_x + y * of_y, y * of_x - x * of_y], dim=1).mT
    return covariance


PART_COVARIANCE = Statistic(
    name="part_covariance",
    observes=("query", "key", "cosine", "sine", "position"),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim, geometry.head_dim),
    of_batch=part_covariances,
)


def pair_gains(covariance: Tensor, pairs: Sequence[int]) -> Tensor:
    """Return the gains of the kept pairs of some heads that leave the least variance of a logit's error.

    Args:
        covariance: (heads, head_dim, head_dim) as `part_covariances` gives it; whatever its scale.
        pairs: that stay, ascending, the same in these heads.

    Returns:
        (heads, 2, pairs) float64: real parts of the gains, then imaginary ones.
    """
    half = covariance.shape[-1] // 2
    kept = torch.tensor([*pairs, *(pair + half for pair in pairs)], device=covariance.device)
    covariance = covariance.double()
    with_all = covariance[:, kept, :half].sum(dim=-1)  # (heads, 2 * pairs): with the whole logit
    own = covariance[:, kept][:, :, kept]
    mean = own.diagonal(dim1=1, dim2=2).mean(dim=-1)
    strength = torch.where(mean > 0, RIDGE * mean, 1.0).unsqueeze(-1)
    plain = torch.cat([torch.ones(len(pairs)), torch.zeros(len(pairs))]).to(with_all)
    damped = own + strength.unsqueeze(-1) * torch.eye(len(kept), dtype=torch.float64, device=own.device)
    solved = torch.linalg.solve(damped, with_all + strength * plain)
    return solved.view(-1, 2, len(pairs)).round(decimals=DIGITS)


def fold_gains(rows: Tensor, gains: Tensor) -> Tensor:
    """Multiply the queries of every pair by the conjugate of its gain, in the rows of q_proj.

    Args:
        rows: (heads * head_dim, inputs), with the kept pairs alone.
        gains: (heads, 2, pairs) as `pair_gains` gives them.
    """
    heads, _, pairs = gains.shape
    real, imaginary = gains.to(rows).unsqueeze(-1).unbind(dim=1)  # (heads, pairs, 1)
    x, y = rows.view(heads, 2, pairs, -1).unbind(dim=1)
    return torch.stack([real * x + imaginary * y, real * y - imaginary * x], dim=1).reshape(rows.shape)
