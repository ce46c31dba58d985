"""prune.shapes=layers through the whole command: what it finds, what it leaves, and what goes on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.support.commands import Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, start, wait_until
from tests.support.tasks import write_tasks
from transact.config.compose import typed_config
from transact.estimate.contents import forecast
from transact.files import read_json
from transact.geometry import Geometry
from transact.models.folder import geometry_of

LAYERS = ["prune.shapes=layers", "prune.rounds=1", "recover.tokens=2048", "recover.validations=1"]


@pytest.fixture(scope="module")
def folder(workplace: Workplace) -> Path:
    """A finished run on two ranks, with a measured split, efficiency and a task."""
    measured = ["eval.efficiency.prompt_tokens=[16]", "eval.efficiency.new_tokens=[4]", "eval.efficiency.turns=1"]
    tracked = ["track.mode=offline", "track.project=transact", "export.gguf=f16"]
    tasks = write_tasks(workplace.folder / "tasks_of_shapes", workplace.heldout.read_text()[:250])
    tracked += ["+eval.tasks={how_likely: 0, what_next: 0}", f"eval.task_folders=['{tasks}']"]
    done = transact([*workplace.overrides("layers"), *LAYERS, "prune.split=auto", *measured, *tracked], ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "shapes: divergence" in said and " shapes measured" in said
    assert "(trust_remote_code=True)" in said and "layers-f16.gguf; llama.cpp loads it: " in said
    return workplace.folder / "layers"


def shape_of(folder: Path) -> Geometry:
    return Geometry.from_dict(read_json(folder / "result.json")["pruned"]["geometry"])


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "round_01" / "shapes.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_best_measured_shape_is_what_is_cut_and_takes_no_more_than_the_uniform_one(folder: Path) -> None:
    found, split = (read_json(folder / "round_01" / name) for name in ("shapes.json", "split.json"))
    start, shape = Geometry.from_dict(found["start"]), shape_of(folder)
    assert found["start"] == split["chosen"] and found["chosen"] == shape.to_dict()
    assert shape.layers and len({each.intermediate_size for each in shape.layers}) > 1
    assert shape.parameters() <= start.parameters() and shape.kv_bytes_per_token() <= start.kv_bytes_per_token()
    begin, *rows = log_of(folder)
    assert begin["start"] == found["start"] and len(rows) == found["evaluations"]
    assert rows[0]["divergence"] == found["divergence"]["start"] > found["divergence"]["chosen"]
    assert any(row["divergence"] == found["divergence"]["chosen"] for row in rows)


def test_transformers_loads_it_and_counts_the_same(folder: Path) -> None:
    result, export = read_json(folder / "result.json"), folder / "export"
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    assert model.num_parameters() == result["pruned"]["parameters"] == shape_of(folder).parameters()
    cache = model(torch.arange(8)[None]).past_key_values
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert result["pruned"]["kv_bytes_per_token"] == 2 * elements / 8
    assert result["pruned"]["tasks"].keys() == {"how_likely", "what_next"}  # lm-eval: a likelihood, and generation
    card = (export / "README.md").read_text()
    assert "`layerwise_llama.py`" in card and "on average" in card and "vLLM serves it" in card
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(export)


def test_what_it_costs_to_run_is_measured_and_the_report_shows_every_layer(folder: Path) -> None:
    efficiency = read_json(folder / "efficiency.json")
    assert efficiency["latency"] and efficiency["models"]["pruned"]["geometry"]["layers"]
    page = (folder / "report.html").read_text()
    assert "What every layer keeps" in page and "Search for shapes, round 1" in page
    tables = {path.name.split("_")[0] for path in (folder / "wandb").rglob("media/table/prune/*.json")}
    assert {"shapes", "shape"} <= tables


def test_the_estimate_foretold_the_disk(folder: Path) -> None:
    """Within a tenth, though it knows neither the split nor the shape."""
    found = forecast(typed_config(yaml.safe_load((folder / "config.yaml").read_text())))["disk_bytes"]
    models = [path for name in ("sliced", "recovered") for path in (folder / "round_01" / name).glob("*.safetensors")]
    for name, files in {
        "sliced_and_recovered": models,
        "export": list((folder / "export").glob("*.safetensors")),
    }.items():
        assert files
        assert found[name] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1), name


def test_one_rank_finds_the_same(workplace: Workplace, folder: Path) -> None:
    done = transact([*workplace.overrides("one_rank"), *LAYERS, "prune.split=auto", "eval.efficiency.measured=false"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert shape_of(workplace.folder / "one_rank") == shape_of(folder)
    for one, two in zip(log_of(folder)[1:], log_of(workplace.folder / "one_rank")[1:], strict=True):
        assert one["widths"] == two["widths"]
        assert one["divergence"] == pytest.approx(two["divergence"], rel=1e-4)


def test_a_search_may_begin_with_fewer_heads(workplace: Workplace) -> None:
    """Half of the cache, in heads of the parent's size: one of two key-value heads, which no layer gets back."""
    asked = [each for each in workplace.overrides("half") if not each.startswith("prune.remove")]
    asked += ["prune=budget", "prune.budget.kv_bytes_per_token=0.5", "prune.budget.parameters=0.7", "prune.split=auto"]
    asked += ["prune.multiple.head_dim=16", "prune.shapes=layers", "prune.rounds=1", "recover.tokens=0"]
    done = transact([*asked, "eval.efficiency.measured=false"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = workplace.folder / "half"
    start, shape = Geometry.from_dict(read_json(folder / "round_01" / "shapes.json")["start"]), shape_of(folder)
    assert start.num_key_value_heads == 1 and not start.layers
    assert {each.num_key_value_heads for each in shape.widths()} == {1}
    assert len((folder / "round_01" / "shapes.jsonl").read_text().splitlines()) > 4
    model = AutoModelForCausalLM.from_pretrained(folder / "export", trust_remote_code=True)
    assert model.num_parameters() == shape.parameters() <= start.parameters()


def rounds_of(folder: Path) -> list[Geometry]:
    return [Geometry.from_dict(each["geometry"]) for each in read_json(folder / "result.json")["rounds"]]


@pytest.mark.parametrize("more", [[], ["prune/method=obs", "prune.method.pair_scope=head"]], ids=["default", "obs"])
def test_rounds_narrow_every_layer_towards_its_shape(workplace: Workplace, more: list[str]) -> None:
    """The search is of the first round, and the second one cuts layers that differ."""
    name = f"rounds_{len(more)}"
    asked = [*LAYERS, "prune.rounds=2", *more, "eval.efficiency.measured=false", "track.mode=offline"]
    done = transact([*workplace.overrides(name), *asked], ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = workplace.folder / name
    found = read_json(folder / "round_01" / "shapes.json")
    first, last = rounds_of(folder)
    assert last.to_dict() == found["chosen"] and last.layers and first.layers
    parent = geometry_of(workplace.model)
    for had, on_the_way, end in zip(parent.widths(), first.widths(), last.widths(), strict=True):
        for width in ("num_key_value_heads", "intermediate_size"):
            assert getattr(had, width) >= getattr(on_the_way, width) >= getattr(end, width)
    assert not (folder / "round_02" / "shapes.json").exists()
    sources = [read_json(folder / f"round_0{number}" / "selection.json")["source"] for number in (1, 2)]
    assert sources == [parent.to_dict(), first.to_dict()]
    model = AutoModelForCausalLM.from_pretrained(folder / "export", trust_remote_code=True)
    assert model.num_parameters() == last.parameters()


def test_killed_between_rounds_it_goes_on_towards_the_same_shape(workplace: Workplace) -> None:
    asked = [*LAYERS, "prune.rounds=2", "eval.efficiency.measured=false"]
    killed, whole = workplace.folder / "killed_between", workplace.folder / "undisturbed"
    done = transact([*workplace.overrides(whole.name), *asked])
    assert done.returncode == 0, done.stdout + done.stderr
    process = start([*workplace.overrides(killed.name), *asked])
    wait_until((killed / "round_02" / "statistics.safetensors").exists, process, 120)
    process.kill()
    process.wait()
    done = transact([*workplace.overrides(killed.name), *asked])
    assert done.returncode == 0, done.stdout + done.stderr
    assert rounds_of(killed) == rounds_of(whole) and rounds_of(killed)[0].layers
    assert_same_export(killed, whole)


def test_channels_by_elimination_begin_at_a_width_between_its_steps(workplace: Workplace) -> None:
    """At most 64 widths of an MLP are eliminated to, which need not be multiples of where the search begins."""
    asked = ["prune/method=obs", "prune.multiple.intermediate_size=1", "prune.shape_evaluations=6", "recover.tokens=0"]
    done = transact([*workplace.overrides("eliminated"), *LAYERS, *asked, "eval.efficiency.measured=false"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(workplace.folder / "eliminated" / "round_01" / "shapes.json")
    whole = read_json(workplace.model / "config.json")["intermediate_size"]
    assert found["start"]["intermediate_size"] % math.ceil(whole / 64) and found["evaluations"] <= 6


def test_killed_in_its_search_and_in_its_recovery_it_goes_on_and_ends_the_same(workplace: Workplace) -> None:
    """What was measured is not measured again; log and weights are those of a run that nobody killed."""
    slow = ["recover.validation_sequences=24", "engine.micro_batch_sequences=1"]  # a fifth of a second for each shape
    overrides = [*LAYERS, "eval.efficiency.measured=false", "engine.checkpoint_every.tokens=256", *slow]
    done = transact([*workplace.overrides("whole"), *overrides])
    assert done.returncode == 0, done.stdout + done.stderr
    killed = workplace.folder / "killed"
    log = killed / "round_01" / "shapes.jsonl"

    def kill_when(reached: Callable[[], bool]) -> None:
        process = start([*workplace.overrides("killed"), *overrides])
        wait_until(reached, process, 120)
        process.kill()
        process.wait()

    kill_when(lambda: log.is_file() and log.read_text().count("\n") > 5)
    before = log.read_text()
    assert not (killed / "round_01" / "shapes.json").exists()
    log.write_text(before[:-9])  # as if the kill had come in the middle of a line
    kill_when(lambda: any(each.name.startswith("round_01") for each in checkpoints(killed)))
    done = transact([*workplace.overrides("killed"), *overrides])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from checkpoint round_01_step_" in done.stdout
    assert log.read_text() == (workplace.folder / "whole" / "round_01" / "shapes.jsonl").read_text()
    assert log.read_text().startswith(before[: before.rindex("\n", 0, -9)])
    assert shape_of(killed).layers
    assert_same_export(killed, workplace.folder / "whole")
    assert shape_of(killed) == shape_of(workplace.folder / "whole")
    # Damaged after its round was sliced, it is made again, with Gram matrices that are gone by then.
    (killed / "round_01" / "shapes.json").write_text("{")
    done = transact([*workplace.overrides("killed"), *overrides])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round_01/shapes: its file round_01/shapes.json" in done.stdout
    assert shape_of(killed) == shape_of(workplace.folder / "whole")
