"""What the search for shapes measures is what the cut then computes: the sliced model itself is the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.cut_folder import cut_folder
from tests.support.tiny import write_model
from transact.config.pruning import MethodConfig
from transact.geometry import Widths
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.narrowing import narrowing
from transact.models.stock import load_model
from transact.pruning.criteria import Criteria, Evidence
from transact.pruning.refit import LayerGram, Ridge
from transact.pruning.selection import Chosen, Goal, Rules, Selection, best_indices, make_selection
from transact.stages.calibrate import file_name
from transact.stages.select import order_of_heads
from transact.stages.shapes import Fits, ShapeLog
from transact.stages.split import worth_measuring

METHOD = MethodConfig(refit="least_squares")
ORDERS = [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("head_dim", "scope"),
    [(16, "model"), (8, "model"), (8, "layer"), (8, "head")],
    ids=["whole_heads", "cut_heads", "pairs_of_layers", "pairs_of_heads"],
)
@torch.no_grad()
def test_a_candidate_computes_what_its_cut_computes(tmp_path: Path, head_dim: int, scope: str) -> None:
    source = write_model(tmp_path / "source")
    whole, tokens = geometry_of(source), torch.arange(300).view(4, 75) * 7 % 500
    model = load_model(source, dtype=torch.float32)
    criteria = Criteria.of(METHOD)
    with (
        collect_statistics(model, whole, criteria.statistics(whole)) as sums,
        collect_grams(model, whole, range(whole.num_layers)) as collector,
    ):
        model(tokens)
    grams = tmp_path / "gram"
    grams.mkdir()
    for layer in range(whole.num_layers):
        tensors = {name: tensor.float() for name, tensor in collector.take_gram(layer).to_tensors().items()}
        save_file(tensors, grams / file_name(layer))
    scores = criteria.score(Evidence(geometry=whole, statistics=sums.statistics(tokens.numel())))

    def selected(target: Any) -> Selection:
        rules = Rules(value_basis="svd", pair_scope=scope)
        chosen = Chosen(head_orders=ORDERS)
        return make_selection(scores, whole, Goal(target=target, parent=whole), rules, chosen=chosen)

    base = selected(replace(whole, head_dim=head_dim))
    shape = base.target.with_layers(
        [Widths(num_key_value_heads=1, intermediate_size=40), Widths(num_key_value_heads=2, intermediate_size=160)]
    )
    group = SimpleNamespace(device=torch.device("cpu"))
    job: Any = SimpleNamespace(
        config=SimpleNamespace(prune=SimpleNamespace(method=METHOD), engine=SimpleNamespace(dtype="float32")),
        group=group,
    )
    fits = Fits(job, source, grams, base, ORDERS, lambda layer, width: best_indices(scores.channels[layer], width))
    measured = load_model(cut_folder(source, tmp_path / "base", base, grams, Ridge.of(METHOD)), dtype=torch.float32)
    whole_logits = measured(tokens).logits
    expected = load_model(
        cut_folder(source, tmp_path / "cut", selected(shape), grams, Ridge.of(METHOD)), dtype=torch.float32
    )(tokens).logits
    with narrowing(measured, fits.current):
        fits.take(shape)
        torch.testing.assert_close(measured(tokens).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(whole_logits, expected, atol=1e-3)
        fits.take(base.target)  # all of it again
        torch.testing.assert_close(measured(tokens).logits, whole_logits)
    torch.testing.assert_close(measured(tokens).logits, whole_logits)


def test_a_log_goes_on_where_a_kill_cut_it_short(tmp_path: Path) -> None:
    digests = ["f00d"]
    group = SimpleNamespace(is_main=True, on_main=lambda work: work())
    job: Any = SimpleNamespace(group=group, made_of=lambda *paths: digests[-1] if paths else "nothing")
    start = geometry_of(write_model(tmp_path / "model"))
    other = start.with_layers([Widths(num_key_value_heads=1, intermediate_size=8)] * start.num_layers)
    path = tmp_path / "shapes.jsonl"
    log = ShapeLog(job, path, start)
    log.add(start, 0.5)
    log.add(other, 0.25)
    path.write_text(path.read_text()[:-9])
    again = ShapeLog(job, path, start)
    assert (again.known(start), again.known(other), again.count) == (0.5, None, 1)
    again.add(other, 0.75)
    assert ShapeLog(job, path, start).known(other) == 0.75
    for damaged in ('{"widths": 1}', "3", '{"widths": [{"depth": 1}], "divergence": 1}'):
        lines = path.read_text()
        path.write_text(lines + damaged + "\n")
        assert ShapeLog(job, path, start).count == 2 and path.read_text() == lines
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n")
    assert ShapeLog(job, path, start).count == 2
    grams = [tmp_path]
    assert ShapeLog(job, path, start, grams).known(start) is None  # of other matrices: it begins anew
    ShapeLog(job, path, start, grams).add(start, 0.5)
    assert ShapeLog(job, path, start, grams).known(start) == 0.5
    digests.append("beef")
    assert ShapeLog(job, path, start, grams).known(start) is None
    assert ShapeLog(job, path, other).known(start) is None


def test_of_fewer_heads_those_are_measured_that_are_no_narrower_than_the_best(tmp_path: Path) -> None:
    whole = geometry_of(write_model(tmp_path / "model"))
    line = [replace(whole, head_dim=size) for size in (16, 12, 8, 4)]
    assert worth_measuring(line, None) == line and worth_measuring(line, line[-1]) == line
    assert worth_measuring(line, line[1]) == line[:2]


def test_the_head_whose_loss_a_refit_makes_up_for_goes_first(tmp_path: Path) -> None:
    """By brute force: o_proj fitted to what the other key-value head, with its two query heads, gives it."""
    model = write_model(tmp_path / "model")
    source = geometry_of(model)
    generator = torch.Generator().manual_seed(0)
    size = source.queries_per_key_value_head * source.head_dim
    for loud in (0, 1):
        inputs = torch.randn(400, 2 * size, generator=generator, dtype=torch.float64)
        inputs[:, loud * size : (loud + 1) * size] *= 3
        weight = torch.randn(source.hidden_size, 2 * size, generator=generator, dtype=torch.float64)
        gram = LayerGram(attention_output=inputs.T @ inputs, intermediate=torch.zeros(1, 1))
        left = []
        for gone in (0, 1):
            stays = inputs[:, (1 - gone) * size : (2 - gone) * size]
            fitted = torch.linalg.lstsq(stays, inputs @ weight.T).solution
            left.append(float((inputs @ weight.T - stays @ fitted).square().sum()))
        order = order_of_heads(weight, gram, source, MethodConfig(ridge=1e-9))
        assert order == sorted((0, 1), key=left.__getitem__) == [1 - loud, loud]
