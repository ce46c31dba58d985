"""Pair scores against attention logits written out position by position."""

from __future__ import annotations

import pytest
import torch

from transact.geometry import Geometry
from transact.pruning.pair_scores import logit_variances, pair_products

GEOMETRY = Geometry(
    hidden_size=8,
    num_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=4,
    vocab_size=5,
    tied_embeddings=True,
)
BATCH, LENGTH = 2, 7
POSITION = torch.arange(LENGTH).view(1, LENGTH, 1)


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, cosine and sine, as a transformers LLaMA has them."""
    torch.manual_seed(0)
    angles = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.3, 0.01])
    angles = torch.cat([angles, angles], dim=-1)[None]
    return torch.randn(BATCH, LENGTH, 24), torch.randn(BATCH, LENGTH, 12), angles.cos(), angles.sin()


def test_products_by_loops() -> None:
    query, key, _, _ = example()
    expected = torch.zeros(4, 3)
    for head in range(4):
        for pair in range(3):
            q = query.view(BATCH, LENGTH, 4, 6)[:, :, head, [pair, pair + 3]]
            k = key.view(BATCH, LENGTH, 2, 6)[:, :, head // 2, [pair, pair + 3]]
            expected[head, pair] = (q.norm(dim=-1) * k.norm(dim=-1)).sum()
    torch.testing.assert_close(pair_products(query, key, GEOMETRY), expected.double(), rtol=1e-5, atol=0)


def test_variances_by_the_rotation_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key, cosine, sine = example()
    q, k = apply_rotary_pos_emb(
        query.view(BATCH, LENGTH, 4, 6).transpose(1, 2), key.view(BATCH, LENGTH, 2, 6).transpose(1, 2), cosine, sine
    )
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for head in range(4):
        for pair in range(3):
            dims = [pair, pair + 3]
            parts = q[:, head][..., dims] @ k[:, head // 2][..., dims].mT / 6**0.5  # (batch, queries, keys)
            for position in range(LENGTH):
                expected[head, pair] += parts[:, position, : position + 1].var(dim=-1, unbiased=False).sum()
    for within in (None, POSITION, POSITION.expand(BATCH, -1, -1)):
        found = logit_variances(query, key, cosine, sine, within, GEOMETRY)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_part_that_never_varies_scores_nothing() -> None:
    """Softmax ignores a constant: pair 2 turns so slowly that equal keys give equal parts everywhere."""
    query, key, cosine, sine = example()
    key = key.view(BATCH, LENGTH, 2, 6).clone()
    key[..., [2, 5]] = 3.0
    still = torch.ones_like(cosine), torch.zeros_like(sine)
    found = logit_variances(query, key.view(BATCH, LENGTH, 12), *still, None, GEOMETRY)
    assert found[:, 2].max() < 1e-4 < 1 < found[:, :2].min()


@pytest.mark.parametrize("score", ["products", "variances"])
def test_sums_merge(score: str) -> None:
    query, key, cosine, sine = example()

    def of(part: slice) -> torch.Tensor:
        if score == "products":
            return pair_products(query[part], key[part], GEOMETRY)
        return logit_variances(query[part], key[part], cosine, sine, None, GEOMETRY)

    torch.testing.assert_close(of(slice(0, 1)) + of(slice(1, 2)), of(slice(None)), rtol=1e-6, atol=0)


def test_variances_of_documents_in_one_sequence_are_those_of_each_alone() -> None:
    """A long constant in an earlier document, whose sums are large, leaves no trace in a later one."""
    lengths = (300, 1, 5, 2)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, sum(lengths), width, generator=generator) for width in (24, 12))
    key[:, : lengths[0]] += 100.0
    position = torch.cat([torch.arange(length) for length in lengths]).view(1, -1, 1)
    angles = position * torch.tensor([1.0, 0.3, 0.01]).repeat(2)
    whole = (query, key, angles.cos(), angles.sin(), position)
    of_each = zip(*(each.split(lengths, dim=1) for each in whole), strict=True)
    alone = [logit_variances(*parts, GEOMETRY) for parts in of_each]
    torch.testing.assert_close(logit_variances(*whole, GEOMETRY), sum(alone), rtol=1e-4, atol=1e-5)
    query[:, : lengths[0]] = 0.0  # no more is asked in the first
    torch.testing.assert_close(logit_variances(*whole, GEOMETRY), sum(alone[1:]), rtol=1e-4, atol=1e-5)
