"""prune.target: every set of dimensions that a run may end with is one that the software takes, or it is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from tests.support.configs import compose_config
from transact.config.pruning import TARGETS, BudgetConfig, MethodConfig, MultipleConfig, PruneConfig
from transact.dimensions import geometries, search_space, split_candidates
from transact.geometry import Geometry
from transact.pruning.search_space import Removal, splits
from transact.pruning.targets import ANY, RUNTIMES, check_layers, multiples_for, shape_warnings
from transact.rounds import outline
from transact.stages.preflight import check_settings

# head_dim, query heads, key-value heads, hidden size, channels: SmolLM2 135M and 360M, Qwen2.5 0.5B and 7B, Llama 3.2
# 1B and 3B, Llama 2 7B and 70B, Llama 3 8B, Phi's heads of 80 and 96, the demo parent, and the smallest of the tests.
SHAPES = {
    "smollm2-135m": (64, 9, 3, 576, 1536),
    "smollm2-360m": (64, 15, 5, 960, 2560),
    "qwen2.5-0.5b": (64, 14, 2, 896, 4864),
    "qwen2.5-7b": (128, 28, 4, 3584, 18944),
    "llama-3.2-1b": (64, 32, 8, 2048, 8192),
    "llama-3.2-3b": (128, 24, 8, 3072, 8192),
    "llama-2-7b": (128, 32, 32, 4096, 11008),
    "llama-2-70b": (128, 64, 8, 8192, 28672),
    "llama-3-8b": (128, 32, 8, 4096, 14336),
    "heads of 80": (80, 32, 32, 2560, 10240),
    "heads of 96": (96, 32, 32, 3072, 8192),
    "demo": (32, 6, 2, 192, 640),
    "tiny": (16, 4, 2, 64, 160),
}
FRACTIONS = (0.1, 0.3, 0.5)
VLLM_ON_CPU = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}


def parent(name: str, **flags: bool) -> Geometry:
    head_dim, queries, groups, hidden, channels = SHAPES[name]
    return Geometry(
        hidden_size=hidden,
        num_layers=4,
        num_attention_heads=queries,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=channels,
        vocab_size=1024,
        tied_embeddings=True,
        **flags,
    )


def asked(**settings: Any) -> PruneConfig:
    return PruneConfig(**({"remove_fraction": 0.3, "split": "equal"} | settings))


def ends(config: PruneConfig, dense: Geometry) -> list[Geometry]:
    """All dimensions that a run may end with, by either way to share the cut; none where it is refused."""
    try:
        equal, _ = geometries(replace(config, split="equal"), dense)
        return [equal[-1], *split_candidates(replace(config, split="auto"), dense)]
    except ValueError as error:
        if "cannot be reached: at most" in str(error) and "prune.target" in str(error):
            return []
        raise


def takes(name: str, dense: Geometry, cut: Geometry) -> bool:
    """What is known of each, in its own words, for a dimension that was cut."""
    cuts_heads, cuts_channels = cut.head_dim < dense.head_dim, cut.intermediate_size < dense.intermediate_size
    fewer_heads = cut.num_attention_heads < dense.num_attention_heads
    row, is_large = cut.num_attention_heads * cut.head_dim, dense.hidden_size >= 2048
    if name == "transformers":
        return not (cuts_heads and cut.head_dim % 8)
    if name in ("vllm", "gptq") and cuts_heads and (cut.head_dim not in VLLM_ON_CPU or dense.query_key_value_bias):
        return False
    if fewer_heads and dense.query_key_value_bias and name != "llama_cpp":
        return False
    if name == "gptq":
        channels = 256 if is_large else 128
        return not ((cuts_heads or fewer_heads) and row % 128) and not (
            cuts_channels and cut.intermediate_size % channels
        )
    if name == "vllm":
        return True
    if fewer_heads and row % 32:
        return False
    if cuts_heads and (row % 32 or (is_large and cut.head_dim % 32)):
        return False
    if cuts_channels and cut.intermediate_size % (256 if is_large else 32):
        return False
    return not cuts_heads or not (dense.query_key_value_bias if name == "mlx" else dense.query_key_norm)


def test_the_setting_and_the_table_have_the_same_names() -> None:
    assert set(TARGETS) == {"any", *RUNTIMES}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_run_ends_only_with_what_its_target_takes(name: str, target: str) -> None:
    """Plain, with biases (Qwen2), with norms (Qwen3); "any": with what all of them take."""
    reached = 0
    for flags, fraction in itertools.product(({}, {"query_key_value_bias": True}, {"query_key_norm": True}), FRACTIONS):
        dense = parent(name, **flags)
        found = ends(asked(target=target, remove_fraction=fraction), dense)
        reached += bool(found)
        for each in found:
            for runtime in ANY if target == "any" else (target,):
                assert takes(runtime, dense, each), (flags, fraction, runtime, each)
    assert reached >= 6  # of nine


@pytest.mark.parametrize("name", SHAPES)
def test_all_that_suits_is_tried(name: str) -> None:
    """Every head size that all of them take is one of the sizes that "any" allows."""
    dense = parent(name)
    found = multiples_for("any", dense, pairs_are_free=True).head_dims_below(dense)
    suits = [
        head_dim
        for head_dim in range(2, dense.head_dim, 2)
        if all(takes(runtime, dense, replace(dense, head_dim=head_dim)) for runtime in ANY)
    ]
    assert found == suits


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_all_shapes_of_attention_that_suit_are_in_the_space_of_a_split(name: str, target: str) -> None:
    """Of each number of heads by itself: that others take narrower ones hides none, and the least can be asked for."""
    for flags in ({}, {"query_key_value_bias": True}, {"query_key_norm": True}):
        dense = parent(name, **flags)
        multiples, group = multiples_for(target, dense, pairs_are_free=True), dense.queries_per_key_value_head
        suits = []
        for count in (dense.num_key_value_heads, *multiples.key_value_heads_below(dense)):
            heads = replace(dense, num_key_value_heads=count, num_attention_heads=count * group)
            whole = [dense.head_dim] if heads == dense or count * group * dense.head_dim % multiples.row == 0 else []
            suits += [replace(heads, head_dim=size) for size in whole + multiples.head_dims_below(heads)[::-1]]
        limit = BudgetConfig(kv_bytes_per_token=0.9)
        space = search_space(asked(target=target, split="auto", remove_fraction=None, budget=limit), dense)
        assert space.attention_shapes() == suits
        without = search_space(asked(target=target, split="auto"), dense).attention_shapes()
        assert without == [each for each in suits if each.num_key_value_heads == dense.num_key_value_heads]
        least = min(replace(each, intermediate_size=multiples.intermediate_size).parameters() for each in suits)
        assert splits(Removal(parent=dense, remove_fraction=1 - least / dense.parameters()), space)


def test_what_was_chosen_for_smollm2_before_is_not_now() -> None:
    """Heads of 56: vLLM on CPU and q8_0 refuse them."""
    dense = parent("smollm2-135m")
    assert 56 in {each.head_dim for each in ends(asked(target="transformers"), dense)}
    assert {each.head_dim for each in ends(asked(), dense)} == {64, 32}


@pytest.mark.parametrize("heads", [True, False])
def test_the_heads_of_a_qwen2_stay_where_their_size_follows_from_the_hidden_size(heads: bool) -> None:
    method = MethodConfig(attention="heads", values="norm") if heads else MethodConfig()
    dense = parent("qwen2.5-0.5b", query_key_value_bias=True)
    for each in ends(asked(method=method), dense):
        assert (each.head_dim, each.num_attention_heads) == (dense.head_dim, dense.num_attention_heads)


def test_pairs_in_progression_are_right_for_llama_cpps_qwen3() -> None:
    dense = parent("llama-3-8b", query_key_norm=True)
    free, progression = (
        {each.head_dim for each in ends(asked(target="llama_cpp", rotary_pairs=choice), dense)}
        for choice in ("free", "progression")
    )
    assert free == {128} and progression > {128}


@pytest.mark.parametrize("target", TARGETS)
def test_multiples_that_are_given_count_instead(target: str) -> None:
    own = MultipleConfig(head_dim=2, intermediate_size=1)
    dense = parent("smollm2-135m", query_key_value_bias=True)
    assert ends(asked(target=target, multiple=own, split_candidates=99), dense) == ends(
        asked(target="transformers", multiple=own, split_candidates=99), dense
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head_dim": 56},
            r"prune\.head_dim=56 is not allowed with prune\.target=any: the nearest allowed is 32 or 64;",
        ),
        ({"head_dim": 24}, r"the nearest allowed is 32; prune\.multiple\.head_dim, if given, counts"),
        (
            {"head_dim": 44, "target": "transformers"},
            r"with prune\.target=transformers: the nearest allowed is 40 or 48",
        ),
        ({"head_dim": 40, "target": "llama_cpp"}, "the nearest allowed is 32 or 64"),
        ({"intermediate_size": 1000}, r"prune\.intermediate_size=1000 is not allowed.*nearest allowed is 992 or 1024"),
        ({"intermediate_size": 1530}, "nearest allowed is 1504 or 1536"),
        ({"head_dim": 48, "multiple": MultipleConfig(head_dim=32)}, r"with prune\.multiple\.head_dim=32: .* 32 or 64"),
    ],
)
def test_dimensions_that_do_not_suit_are_refused_with_the_nearest(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometries(asked(**({"remove_fraction": None} | settings)), parent("smollm2-135m"))


def test_heads_beside_a_fraction_are_refused_with_what_they_can_be() -> None:
    with pytest.raises(ValueError, match=r"prune\.head_dim=56 is not allowed: .* prune\.target=any it can be 64, 32"):
        geometries(asked(head_dim=56), parent("smollm2-135m"))


@pytest.mark.parametrize(
    ("name", "words"), [("demo", "with attention as it is and"), ("smollm2-135m", "with head_dim 32 or 64 and")]
)
def test_more_than_suits_is_refused_with_what_would(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot be reached: at most 0\.\d+ .* {words} .*prune\.target"):
        geometries(asked(remove_fraction=0.97), parent(name))


def test_a_round_knows_whether_a_later_one_cuts_pairs() -> None:
    """The rule of gains: that the last round cuts channels alone must not leave a run without any."""
    settings = ["name=run", "data.sequence_length=256", "prune.rounds=4", "prune.split=equal"]
    rounds = outline(
        compose_config([*settings, "prune.remove_fraction=0.3", "prune.target=any"]), parent("smollm2-135m")
    ).rounds
    assert [each.geometry.head_dim for each in rounds] == [64, 64, 32, 32]
    assert [each.cuts_pairs_later for each in rounds] == [True, True, False, False]


@pytest.mark.parametrize(
    ("intermediate_size", "said"),
    [(1024, None), (640, "(256)"), (576, "(256), and no groups of 128 in 4 bits (GPTQ, AWQ)"), (600, "stay f16")],
)
def test_rows_that_quantisation_cannot_divide_are_warned_of(intermediate_size: int, said: str | None) -> None:
    dense = replace(parent("llama-3-8b"), intermediate_size=intermediate_size)
    lines = [line for line in shape_warnings(dense) if f"rows of {intermediate_size} weights" in line]
    assert lines == [] if said is None else len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    ("target", "shapes", "pair_scope", "setting"),
    [
        ("mlx", "layers", "model", "prune.shapes='layers'"),
        ("mlx", "uniform", "layer", "prune.method.pair_scope='layer'"),
        ("llama_cpp", "layers", "head", "prune.method.pair_scope='head'"),
    ],
)
def test_layers_that_the_target_cannot_load_are_refused(
    target: str, shapes: str, pair_scope: str, setting: str
) -> None:
    """What docs/export.md says of its software; "any" names none, and the default must not stand in the way."""
    with pytest.raises(ValueError, match=f"{setting} is not allowed with prune.target={target}"):
        check_layers(target, shapes, pair_scope)
    for other in ("any", "transformers", "vllm"):
        check_layers(other, shapes, pair_scope)
    check_layers("llama_cpp", "layers", "model")


def test_a_request_is_refused_for_it_before_any_work() -> None:
    config = compose_config(["name=x", "prune.target=mlx", "prune.shapes=layers", "recover.batch_sequences=8"])
    parent = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    parent |= {"intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 4096}
    with pytest.raises(ValueError, match=r"prune\.shapes='layers' is not allowed with prune\.target=mlx"):
        check_settings(config, parent, 1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("multiple", [None, 8])
def test_whole_heads_are_cut_to_what_the_target_takes(name: str, target: str, multiple: int | None) -> None:
    """A multiple of head_dim, which no head loses a part of, changes nothing."""
    method, multiples = MethodConfig(attention="heads", values="norm"), MultipleConfig(head_dim=multiple)
    for flags, fraction in itertools.product(({}, {"query_key_value_bias": True}), FRACTIONS):
        dense = parent(name, **flags)
        for each in ends(asked(target=target, remove_fraction=fraction, method=method, multiple=multiples), dense):
            for runtime in ANY if target == "any" else (target,):
                assert takes(runtime, dense, each), (flags, fraction, runtime, each)
