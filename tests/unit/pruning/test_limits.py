"""Limits of what serves a model: the largest dimensions that meet them, by hand and by trying all."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from tests.unit.pruning.test_budget import LLAMA_7B, LLAMA_8B, SMALL
from transact.config.compose import compose_config
from transact.dimensions import geometries, split_candidates
from transact.geometry import Geometry
from transact.pruning.limits import Limits, Serving, limit_words, most_balanced, shape_bounds, within
from transact.pruning.search_space import Multiples, SearchSpace

COARSE = Multiples(head_dim=4, intermediate_size=8)


def dims(found: list[Geometry]) -> list[tuple[int, int]]:
    return [(each.head_dim, each.intermediate_size) for each in found]


def limited(parent: Geometry = SMALL, multiples: Multiples = COARSE, **asked: float) -> list[Geometry]:
    serving = Serving(context_tokens=10, batch_size=2)
    return within(Limits(parent=parent, serving=serving, asked=asked), SearchSpace.below(parent, multiples))


def test_parameters_by_hand() -> None:
    """One head dim costs 80 parameters, one channel 60, embeddings and norms 130."""
    assert dims(limited(parameters=2000)) == [(16, 8), (8, 16), (4, 24)]  # (12, 8) is smaller than (16, 8)


def test_a_cache_alone_takes_nothing_from_the_mlp() -> None:
    """2 layers x 2 x 1 head x head_dim x 2 bytes: 128 for 16 dims, 64 for 8."""
    assert dims(limited(kv_bytes_per_token=0.5)) == [(8, 40)]
    assert dims(limited(kv_bytes_per_token=127)) == [(12, 40)]


def test_weights_and_cache_share_the_memory() -> None:
    """2 bytes a weight and 20 tokens of cache: 3,810 x 2 + 20 x 128 for all; 8 dims leave room for more channels."""
    serving = Serving(context_tokens=10, batch_size=2)
    assert serving.figures(SMALL)["memory_bytes"] == 7620 + 2560
    for geometry in limited(memory_bytes=6000):
        assert serving.figures(geometry)["memory_bytes"] <= 6000
    # 8 dims: 770 parameters and 1,280 bytes of cache leave 3,180 bytes, which are 26 channels: 24 by eights.
    assert (8, 24) in dims(limited(memory_bytes=6000))


LIMITS = [{"parameters": 0.6}, {"memory_bytes": 0.5}, {"parameters": 0.7, "kv_bytes_per_token": 0.4}]


@pytest.mark.parametrize("asked", LIMITS)
def test_it_finds_what_trying_all_finds(asked: dict[str, float]) -> None:
    limits = Limits(parent=SMALL, serving=Serving(context_tokens=10, batch_size=2), asked=asked)
    every = [
        replace(SMALL, head_dim=head_dim, intermediate_size=size)
        for head_dim, size in product((16, 12, 8, 4), range(8, 41, 8))
    ]
    meeting = [each for each in every if not limits.broken(each)]
    best = [
        each
        for each in meeting
        if not any(
            other != each and other.head_dim >= each.head_dim and other.intermediate_size >= each.intermediate_size
            for other in meeting
        )
    ]
    assert within(limits, SearchSpace.below(SMALL, COARSE)) == best


def test_whole_heads_meet_limits_too() -> None:
    space = SearchSpace.below(LLAMA_8B, Multiples(head_dim=32, intermediate_size=256), cuts_heads=True)
    limits = Limits(parent=LLAMA_8B, serving=Serving(), asked={"kv_bytes_per_token": 0.5})
    (found,) = within(limits, space)
    assert (found.num_key_value_heads, found.num_attention_heads, found.head_dim) == (4, 16, 128)


@pytest.mark.parametrize("asked", [{"kv_bytes_per_token": 0.5}, {"memory_bytes": 0.5}, {"parameters": 0.6}])
def test_fewer_heads_beside_their_dims_are_what_trying_all_finds(asked: dict[str, float]) -> None:
    limits = Limits(parent=LLAMA_8B, serving=Serving(context_tokens=100_000), asked=asked)
    every = [
        replace(
            LLAMA_8B, num_key_value_heads=heads, num_attention_heads=4 * heads, head_dim=dim, intermediate_size=size
        )
        for heads, dim, size in product((8, 4), (128, 96, 64, 32), range(256, 14337, 256))
    ]
    meeting = [each for each in every if not limits.broken(each)]

    def is_below(one: Geometry, other: Geometry) -> bool:
        names = ("num_key_value_heads", "head_dim", "intermediate_size")
        return one != other and all(getattr(one, name) <= getattr(other, name) for name in names)

    best = [each for each in meeting if not any(is_below(each, other) for other in meeting)]
    space = SearchSpace.below(LLAMA_8B, Multiples(head_dim=32, intermediate_size=256), fewer_heads=True)
    assert within(limits, space) == best and {each.num_key_value_heads for each in best} == {8, 4}


def test_a_limit_that_only_fewer_and_narrower_heads_meet_together_is_told_by_their_least() -> None:
    """Rows of 128 weights: of 15 heads of 64 none may be cut alone, but 12 of 32 dims suit."""
    parent = replace(
        LLAMA_8B, hidden_size=960, num_attention_heads=15, num_key_value_heads=5, head_dim=64, intermediate_size=2560
    )
    config = compose_config(
        ["name=x", "prune=budget", "prune.budget.kv_bytes_per_token=0.5", "prune.target=gptq"]
    ).prune
    assert [(each.num_attention_heads, each.head_dim) for each in split_candidates(config, parent)] == [(12, 32)]
    assert geometries(config, parent)[0][-1] == split_candidates(config, parent)[0]
    config = compose_config(
        ["name=x", "prune=budget", "prune.budget.kv_bytes_per_token=0.3", "prune.target=gptq"]
    ).prune
    with pytest.raises(
        ValueError, match=r"kv_bytes_per_token=0\.3 cannot be met: the least is \S+, 0\.4000 of .* key-value"
    ):
        geometries(config, parent)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [(3810, 1730), (128, 64)]),
        ({"parameters": 0.5}, [(128, 64), (3810, 1905)]),
        ({"kv_bytes_per_token": 0.75}, [(3810, 1730), (128, 96)]),
        ({"weight_bytes": 0.5}, [(128, 64), (7620, 3810)]),
        ({"latency_ms": 0.5}, [(3810, 1730), (128, 64)]),
        # Weights and 4,096 tokens of cache; of each alone what one of the uniform cuts takes.
        ({"memory_bytes": 0.5}, [(3810, 1890), (128, 128), (531_908, 265_954)]),
    ],
)
def test_shapes_of_layers_take_what_was_asked_for_and_not_what_was_not(
    asked: dict[str, float], expected: list[tuple[int, int]]
) -> None:
    """Every bound, by what the whole model takes of it and by what is the most."""
    ends = [replace(SMALL, head_dim=size, intermediate_size=channels) for size, channels in ((8, 16), (4, 24), (16, 8))]
    limits = Limits(parent=SMALL, serving=Serving(), asked=asked)
    found = shape_bounds(ends[0], limits if asked else None, ends)
    assert [(bound.size(SMALL), bound.most) for bound in found] == expected


def test_the_most_balanced_cut_is_that_of_equal_shares() -> None:
    limits = Limits(parent=SMALL, serving=Serving(), asked={"parameters": 0.6})
    assert dims([most_balanced(limits, limited(parameters=0.6))]) == [(8, 24)]


def test_what_cannot_be_met_is_refused_with_the_least_that_can() -> None:
    with pytest.raises(
        ValueError, match=r"prune\.budget\.kv_bytes_per_token=0\.1 cannot be met: the least is 32, 0\.25.*layers begins"
    ):
        limited(kv_bytes_per_token=0.1)
    with pytest.raises(ValueError, match=r"cuts nothing: the model as it is has prune\.budget\.parameters: 3,810 of "):
        limited(parameters=3810)


def test_a_share_and_the_number_that_it_means_are_the_same() -> None:
    assert limited(parameters=0.6) == limited(parameters=0.6 * SMALL.parameters())


def test_what_is_reached_is_said_beside_what_was_asked() -> None:
    limits = Limits(parent=SMALL, serving=Serving(), asked={"parameters": 0.6, "kv_bytes_per_token": 80})
    compared = limits.compared(limited(parameters=0.6, kv_bytes_per_token=80)[0])
    assert limit_words("parameters", compared["parameters"]).endswith("of at most 2,286 (0.6 of the parent's 3,810)")
    assert limit_words("kv_bytes_per_token", compared["kv_bytes_per_token"]).endswith(" of at most 80")


def test_rounds_narrow_towards_the_dimensions_that_meet_the_limits() -> None:
    config = compose_config(["name=x", "prune=budget", "prune.budget.memory_bytes=8e9", "prune.rounds=3"]).prune
    limits = Limits(parent=LLAMA_8B, serving=Serving(), asked={"memory_bytes": 8e9})
    candidates = split_candidates(config, LLAMA_8B)
    found, _ = geometries(config, LLAMA_8B)
    assert len(found) == 3 and found[-1] in candidates and not limits.broken(found[-1])
    sizes = [each.parameters() for each in (LLAMA_8B, *found)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert geometries(config, LLAMA_8B, candidates[0])[0][-1] == candidates[0]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (
            ["prune.budget.parameters=0.5"],
            r"prune.remove_fraction=0.5 is not allowed: prune.budget.parameters is given too; add prune.remove_fr",
        ),
        (["prune=budget"], r"prune.remove_fraction=null is not allowed: give it, or else"),
        (
            ["prune=budget", "prune.budget.parameters=0.5", "prune.intermediate_size=64"],
            r"prune.intermediate_size=64 is not allowed: it follows from prune.budget.parameters",
        ),
        (["prune=budget", "prune.budget.parameters=-1"], r"prune.budget.parameters=-1"),
    ],
)
def test_limits_that_contradict_are_refused(given: list[str], refused: str) -> None:
    with pytest.raises(ValueError, match=refused):
        compose_config(["name=x", *given])


def test_a_head_dim_that_is_given_beside_limits_is_kept() -> None:
    asked = ["name=x", "prune=budget", "prune.budget.parameters=0.5", "prune.head_dim=64", "prune.split=equal"]
    found, _ = geometries(compose_config(asked).prune, LLAMA_8B)
    assert found[-1].head_dim == 64
    narrow = ["name=x", "prune=budget", "prune.budget.kv_bytes_per_token=0.8", "prune.head_dim=64", "prune.split=equal"]
    (last,) = geometries(compose_config(narrow).prune, LLAMA_8B)[0]
    assert (last.head_dim, last.intermediate_size) == (64, LLAMA_8B.intermediate_size)
    with pytest.raises(ValueError, match=r"prune\.head_dim=62 is not allowed: with prune\.budget\.parameters=0\.5 and"):
        geometries(compose_config([*asked, "prune.head_dim=62"]).prune, LLAMA_8B)


@pytest.mark.parametrize(("fraction", "rounds"), [(0.1, 4), (0.2, 8), (0.5, 8)])
def test_what_a_split_measures_can_be_reached_in_all_rounds(fraction: float, rounds: int) -> None:
    """A split that takes most of its share from attention is there in fewer steps than one that takes it from MLPs."""
    asked = ["name=x", f"prune.remove_fraction={fraction}"]
    config = compose_config([*asked, f"prune.rounds={rounds}"]).prune
    candidates = split_candidates(config, LLAMA_7B)
    assert candidates and all(geometries(config, LLAMA_7B, each)[0][-1] == each for each in candidates)
    assert set(candidates) <= set(split_candidates(compose_config([*asked, "prune.rounds=1"]).prune, LLAMA_7B))
    with pytest.raises(ValueError, match=r"^prune.rounds=50 is too many for prune.remove_fraction="):
        split_candidates(compose_config([*asked, "prune.rounds=50"]).prune, LLAMA_7B)
