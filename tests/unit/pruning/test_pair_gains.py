"""Gains of kept rotary pairs against logits and attention that are written out, query by query and key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from transact.config.pruning import MethodConfig
from transact.geometry import Geometry
from transact.pruning.pair_gains import POSITIONS, RIDGE, fold_gains, pair_gains, part_covariances, query_positions
from transact.stages.in_memory import prune_model

DEMO_PARENT = Path(__file__).parents[3] / "transact/assets/demo_parent"
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
BATCH, LENGTH, PAIRS = 2, 37, 3
POSITION = torch.arange(LENGTH).view(1, LENGTH, 1)


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, cosine and sine, as a transformers LLaMA has them; scaled as some rotary embeddings are."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.3, 0.01])
    angles = torch.cat([angles, angles], dim=-1)[None]
    query, key = (torch.randn(BATCH, LENGTH, width, generator=generator) for width in (24, 12))
    return query, key, 1.1 * angles.cos(), 1.1 * angles.sin()


def planes(activation: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, length, heads, pairs), complex."""
    x, y = activation.double().view(BATCH, LENGTH, heads, 2, PAIRS).unbind(dim=3)
    return torch.complex(x, y)


def logit_parts() -> torch.Tensor:
    """Complex z of every pair by loops over nothing but numbers: (batch, heads, queries, keys, pairs)."""
    query, key, cosine, sine = example()
    rotation = torch.complex(cosine.double(), sine.double())[:, :, None, :PAIRS]
    q, k = planes(query, 4) * rotation, planes(key, 2).repeat_interleave(2, dim=2) * rotation
    return torch.einsum("bqhp,bkhp->bhqkp", q.conj(), k) / 6**0.5


def test_positions_are_spread_evenly_and_few() -> None:
    assert query_positions(512) == list(range(31, 512, 32))
    assert query_positions(5) == [0, 1, 2, 3, 4]
    for length in (16, 99, 4096):
        assert len(query_positions(length)) == POSITIONS and query_positions(length)[-1] == length - 1


@pytest.mark.parametrize("begins", [None, [[0]], [[0, 4, 5, 20]], [[0, 4, 5, 20], [0, 9]]])
def test_covariances_by_complex_numbers(begins: list[list[int]] | None) -> None:
    """A query sees the keys of its own document, which begins at one of these places: of all sequences, or of each."""
    z, within = logit_parts(), None
    first = torch.zeros(1, LENGTH, dtype=torch.int64)
    if begins is not None:
        of_each = [[max(each for each in own if each <= place) for place in range(LENGTH)] for own in begins]
        first = torch.tensor(of_each)
        within = POSITION - first.unsqueeze(-1)
    first = first.expand(BATCH, -1)
    expected = torch.zeros(4, 6, 6, dtype=torch.float64)
    for batch in range(BATCH):
        for head in range(4):
            for position in query_positions(LENGTH):
                seen = z[batch, head, position, first[batch, position] : position + 1]
                parts = torch.cat([seen.real, -seen.imag], dim=-1)
                expected[head] += parts.T.cov(correction=0, aweights=seen.real.sum(dim=-1).softmax(dim=0))
    torch.testing.assert_close(part_covariances(*example(), within, GEOMETRY), expected, rtol=1e-4, atol=1e-4)


def test_covariances_merge() -> None:
    query, key, cosine, sine = example()
    given = cosine, sine, None, GEOMETRY
    one, two = (part_covariances(query[[number]], key[[number]], *given) for number in range(2))
    torch.testing.assert_close(part_covariances(query, key, *given), one + two, rtol=1e-6, atol=1e-6)


def test_gains_of_one_of_two_pairs_by_hand() -> None:
    """Real parts of pair 0 and 1, then imaginary ones; the first pair stays, and leans towards 1 by the ridge."""
    covariance = torch.tensor([[4.0, 2.0, 0.0, 9.0], [2.0, 7.0, 1.0, 9.0], [0.0, 1.0, 1.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    strength = RIDGE * (4 + 1) / 2
    expected = [[(4 + 2 + strength) / (4 + strength)], [(0 + 1) / (1 + strength)]]
    (found,) = pair_gains(covariance.unsqueeze(0), [0]).tolist()
    assert found[0] == pytest.approx(expected[0], abs=1e-6) and found[1] == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("covariance", ["random", "zero"])
def test_where_nothing_is_cut_gains_are_one(covariance: str) -> None:
    mixing = torch.randn(4, 6, 6, dtype=torch.float64) * (covariance == "random")
    found = pair_gains(mixing @ mixing.mT, range(3))
    assert found.tolist() == [[[1.0] * 3, [0.0] * 3]] * 4


def test_a_head_that_never_varies_keeps_its_queries() -> None:
    assert pair_gains(torch.zeros(1, 6, 6), [0, 2]).tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_pairs_that_depend_on_those_that_stay_are_made_up_for_wholly() -> None:
    """z of pair 1 is (0.5 - 0.25i) that of pair 0: the whole logit is Re (1.5 - 0.25i) z_0."""
    real, minus_imaginary = torch.randn(2, 500, dtype=torch.float64)
    z = torch.complex(real, -minus_imaginary)
    both = torch.stack([z, (0.5 - 0.25j) * z], dim=-1)
    parts = torch.cat([both.real, -both.imag], dim=-1)
    (found,) = pair_gains(parts.T.cov().unsqueeze(0), [0]).tolist()
    assert found[0][0] == pytest.approx(1.5, abs=2e-3) and found[1][0] == pytest.approx(-0.25, abs=2e-3)


def test_gains_leave_the_least_variance_under_attention() -> None:
    """Against the attention written out: no other factors do better, and the plain cut does much worse."""
    z = logit_parts()
    kept = [0, 2]
    gains = pair_gains(part_covariances(*example(), None, GEOMETRY), kept)

    def left(factors: torch.Tensor) -> float:
        """factors: complex, (heads, kept)."""
        total = 0.0
        for position in query_positions(LENGTH):
            seen = z[:, :, position, : position + 1]  # (batch, heads, keys, pairs)
            logit = seen.real.sum(dim=-1)
            error = logit - (factors[:, None] * seen[..., kept]).real.sum(dim=-1)
            weights = logit.softmax(dim=-1)
            mean = (weights * error).sum(dim=-1, keepdim=True)
            total += float((weights * (error - mean).square()).sum())
        return total

    best = torch.complex(*gains.unbind(dim=1))
    assert left(best) < 0.97 * left(torch.ones_like(best))
    for seed in range(10):
        step = torch.randn(2, *best.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert left(best + 0.05 * torch.complex(*step)) > left(best)


def test_folded_gains_are_factors_of_the_parts_at_every_distance() -> None:
    gains = torch.randn(4, 2, PAIRS, dtype=torch.float64)
    weight = torch.randn(24, 9)  # the last column is a bias
    inputs = torch.randn(BATCH, LENGTH, 9)
    expected = planes(inputs @ weight.T, 4) * torch.complex(*gains.unbind(dim=1)).conj()
    found = planes(inputs @ fold_gains(weight, gains).T, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def attention(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Attention weights of the first layer, whose inputs no cut has changed."""
    model.set_attn_implementation("eager")
    return model(tokens, output_attentions=True).attentions[0].double()


@torch.no_grad()
def test_attention_of_a_trained_model_comes_nearer_to_the_dense_one() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO_PARENT, dtype=torch.float32).eval()
    text = (Path(torch.__file__).parent / "functional.py").read_bytes()[:4096]
    tokens = torch.tensor(list(text)).long().view(16, 256) % model.config.vocab_size
    dense = attention(model, tokens)
    divergence = {}
    for gains in ("none", "attention"):
        method = MethodConfig(pair_gains=gains, channels="norm", values="norm", refit="none")
        cut = prune_model(model, tokens[:12].split(4), head_dim=16, method=method, target="transformers")
        found = attention(cut, tokens)
        divergence[gains] = float((dense * (dense.clamp_min(1e-12) / found.clamp_min(1e-12)).log())[12:].sum())
    assert divergence["attention"] < 0.8 * divergence["none"], divergence
