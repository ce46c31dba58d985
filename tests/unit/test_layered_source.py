"""A later round cuts layers that differ already: the oracle is a uniform model with zeros for what they lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.cut_folder import cut_folder
from tests.support.tiny import write_model
from transact.config.pruning import MethodConfig
from transact.geometry import Geometry, Widths, geometry_changes
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.llama import expected_shapes
from transact.models.stock import load_model
from transact.pruning.activation_maps import activation_maps
from transact.pruning.criteria import Criteria, Evidence, magnitude_scores, stack_scores
from transact.pruning.greedy_obs import elimination_path
from transact.pruning.refit import Ridge
from transact.pruning.selection import Chosen, Goal, Rules, Selection, make_selection
from transact.pruning.statistics import ActivationStatistics
from transact.pruning.weights import LayerWeights

TOKENS = torch.arange(300).view(4, 75) * 7 % 500
FIRST = [Widths(num_key_value_heads=1, intermediate_size=120), Widths(num_key_value_heads=2, intermediate_size=72)]
SECOND = [Widths(num_key_value_heads=1, intermediate_size=72), Widths(num_key_value_heads=1, intermediate_size=56)]


@torch.no_grad()
def statistics_of(model: Path, criteria: Criteria) -> ActivationStatistics:
    geometry, loaded = geometry_of(model), load_model(model, dtype=torch.float32)
    with collect_statistics(loaded, geometry, criteria.statistics(geometry)) as sums:
        loaded(TOKENS)
    return sums.statistics(TOKENS.numel())


def selected(model: Path, criteria: Criteria, target: Geometry, scope: str, orders: list[list[int]]) -> Selection:
    source, statistics = geometry_of(model), statistics_of(model, criteria)
    scores = criteria.score(Evidence(geometry=source, statistics=statistics))
    covariance = statistics.sums.get("part_covariance") if target.head_dim < source.head_dim else None
    return make_selection(
        scores,
        source,
        Goal(target=target, parent=source),
        Rules(pair_scope=scope),
        chosen=Chosen(head_orders=orders),
        part_covariance=covariance,
    )


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    """A model whose first layer lost a key-value head, and whose second lost more channels."""
    whole = write_model(tmp_path / "whole")
    target = geometry_of(whole).with_layers(FIRST)
    return cut_folder(
        whole, tmp_path / "layered", selected(whole, Criteria.of(MethodConfig()), target, "model", [[1, 0], [0, 1]])
    )


@pytest.fixture
def padded(layered: Path, tmp_path: Path) -> Path:
    """The same model with all layers as large as the largest, and zeros behind what each has."""
    uniform = replace(geometry_of(layered), layers=())
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(uniform).items()}
    for name, tensor in load_file(layered / "model.safetensors").items():
        tensors[name][tuple(map(slice, tensor.shape))] = tensor.float()
    folder = write_model(tmp_path / "padded", intermediate_size=uniform.intermediate_size)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert geometry_of(folder) == uniform
    return folder


@torch.no_grad()
def test_its_activations_are_summed_like_those_of_one_with_zeros(layered: Path, padded: Path) -> None:
    criteria = Criteria.of(MethodConfig(pair_score="logit_variance"))
    found, expected = (statistics_of(each, criteria) for each in (layered, padded))
    assert found.sums.keys() == expected.sums.keys()
    for name in found.sums:
        torch.testing.assert_close(found.sums[name], expected.sums[name], rtol=1e-4, atol=1e-4)
    geometry, model = geometry_of(layered), load_model(layered, dtype=torch.float32)
    with collect_grams(model, geometry, range(geometry.num_layers)) as collector:
        model(TOKENS)
    sizes = [tuple(len(each) for each in collector.take_gram(layer).to_tensors().values()) for layer in range(2)]
    assert sizes == [(32, 120), (64, 72)]


@pytest.mark.parametrize("pair_score", ["norm_product", "logit_variance"])
@pytest.mark.parametrize(
    ("head_dim", "scope"),
    [(16, "model"), (8, "model"), (8, "layer"), (8, "head")],
    ids=["widths", "cut_heads", "pairs_of_layers", "pairs_of_heads"],
)
@torch.no_grad()
def test_its_cut_is_that_of_one_with_zeros(
    layered: Path, padded: Path, tmp_path: Path, head_dim: int, scope: str, pair_score: str
) -> None:
    criteria = Criteria.of(MethodConfig(pair_score=pair_score))
    target = replace(geometry_of(layered), layers=(), head_dim=head_dim).with_layers(SECOND)
    # Where one with zeros has a head of zeros, that one goes first.
    own, other = (
        selected(each, criteria, target, scope, orders)
        for each, orders in ((layered, [[0], [1, 0]]), (padded, [[1, 0], [1, 0]]))
    )
    assert own.channels == other.channels and own.query_heads == other.query_heads
    assert own.query_key_dims == other.query_key_dims and own.value_dims == other.value_dims
    found, expected = (
        cut_folder(each, tmp_path / name, kept) for each, name, kept in ((layered, "a", own), (padded, "b", other))
    )
    torch.testing.assert_close(
        load_model(found, dtype=torch.float32)(TOKENS).logits,
        load_model(expected, dtype=torch.float32)(TOKENS).logits,
        rtol=1e-4,
        atol=1e-5,
    )
    assert geometry_of(found) == target


def test_channels_that_a_layer_lacks_never_stay(layered: Path) -> None:
    """Not even where every channel that it has scores zero, or scores are random."""
    geometry = geometry_of(layered)
    statistics = ActivationStatistics.zeros(geometry, Criteria.of(MethodConfig()).statistics(geometry))
    for method in (MethodConfig(), MethodConfig(channels="random")):
        scores = Criteria.of(method).score(Evidence(geometry=geometry, statistics=statistics))
        made = make_selection(scores, geometry, Goal(target=geometry.with_layers(SECOND), parent=geometry), Rules())
        assert max(made.channels[1]) < 72 and made.query_heads[0] == (0, 1)


def test_magnitudes_of_layers_that_differ_stand_side_by_side() -> None:
    geometry = Geometry(
        hidden_size=8,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=6,
        vocab_size=10,
        tied_embeddings=True,
        layers=(
            Widths(num_key_value_heads=1, intermediate_size=6),
            Widths(num_key_value_heads=2, intermediate_size=3),
        ),
    )

    def ones(own: Geometry) -> LayerWeights:
        queries, keys = own.num_attention_heads * 4, own.num_key_value_heads * 4
        return LayerWeights(
            query=torch.ones(queries, 8),
            key=torch.ones(keys, 8),
            value=torch.ones(keys, 8),
            output=torch.ones(8, queries),
            gate=torch.ones(own.intermediate_size, 8),
            up=torch.ones(own.intermediate_size, 8),
            down=torch.ones(8, own.intermediate_size),
        )

    layers = [geometry.of_layer(layer) for layer in range(2)]
    scores = stack_scores([magnitude_scores(ones(own), own) for own in layers])
    assert scores.pairs.shape == (2, 2, 2) and scores.values.shape == (2, 2, 4) and scores.channels.shape == (2, 6)
    assert scores.pairs[0, 1].tolist() == [0, 0] and scores.pairs[0, 0].min() > 0
    assert scores.channels[1].tolist()[3:] == [0, 0, 0] and scores.channels[1, :3].min() > 0


def test_elimination_keeps_all_channels_of_a_layer_that_has_no_more() -> None:
    weight, gram = torch.randn(4, 6), torch.eye(6, dtype=torch.float64)
    kept = elimination_path(weight, gram, [3, 6, 9], Ridge.of(MethodConfig()))
    assert len(kept[3]) == 3 and kept[6].tolist() == kept[9].tolist() == list(range(6))


@torch.no_grad()
def test_maps_count_the_channels_that_there_are(layered: Path) -> None:
    criteria = Criteria.of(MethodConfig())
    target = geometry_of(layered).with_layers(SECOND)
    maps = activation_maps(
        statistics_of(layered, criteria), selected(layered, criteria, target, "model", [[0], [1, 0]])
    )
    assert maps["intermediate"].sizes.tolist() == [120, 72] and maps["query"].sizes.tolist() == [16, 32]
    one = maps["intermediate"]
    assert one.mean_norm() == pytest.approx(float(torch.cat([one.norms[0], one.norms[1, :72]]).mean()))
    squares = one.norms[1, :72].square()
    assert float(one.redundancy()[1]) == pytest.approx(1 - float(squares.sum() ** 2 / squares.square().sum()) / 72)


def test_what_a_cut_changes_is_told_with_both_ranges(layered: Path) -> None:
    before = geometry_of(layered)
    words = geometry_changes(before, before.with_layers(SECOND))
    assert words == (
        "num_attention_heads 2 to 4 (3.0 on average) -> 2, num_key_value_heads 1 to 2 (1.5 on average) -> 1, "
        "intermediate_size 72 to 120 (96 on average) -> 56 to 72 (64 on average)"
    )
