"""What the benchmark of a real model is made of: FLAP's scores, the text that is held out, the names of its rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.flap import SUMS, flap_scores
from benchmarks.real_model import begun_result
from benchmarks.real_model_inputs import prepare_tasks, prepare_text
from benchmarks.real_model_methods import METHODS, Row, method_overrides, with_and_without_refit
from benchmarks.real_model_table import real_model_summary
from benchmarks.smollm2 import WHEEL, WHEEL_SHA256, smollm2_folder
from benchmarks.workload import RESULTS, parse_whole
from tests.support.configs import compose_config
from transact.geometry import Geometry
from transact.pruning.statistics import SQUARES, ActivationStatistics
from transact.runs.software import git_revision

GEOMETRY = Geometry(
    hidden_size=8,
    num_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=6,
    vocab_size=5,
    tied_embeddings=True,
)


def test_flap_scores_are_variances_times_squared_norms_of_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {"attention_output": torch.randn(3, 5, 8, generator=generator) + 2}
    seen["intermediate"] = torch.randn(3, 5, 6, generator=generator) - 1
    sums = {
        each.name: each.of_batch(seen[each.observes[0]], GEOMETRY).unsqueeze(0)
        for each in (*SQUARES, *SUMS)
        if each.observes[0] in seen
    }
    statistics = ActivationStatistics(sums=sums, num_tokens=15)
    output, down = torch.rand(1, 2, 4, generator=generator), torch.rand(1, 6, generator=generator)
    found = flap_scores(statistics, (output, down), GEOMETRY)
    variances = {name: each.double().flatten(0, 1).var(dim=0, correction=0) for name, each in seen.items()}
    expected = (variances["attention_output"].view(1, 2, 4) * output).mean(dim=-1)
    torch.testing.assert_close(found["heads"], expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["channels"], variances["intermediate"] * down, rtol=1e-5, atol=1e-8)


def write_folder(folder: Path) -> None:
    documents = [{"source": f"source {number % 3}", "text": f"document {number} " * 5} for number in range(400)]
    for name in ("one.jsonl", "two.jsonl"):  # every document is in both
        folder.joinpath(name).write_text("".join(json.dumps(each) + "\n" for each in documents))
    folder.joinpath("wiki.txt").write_text("a text of its own")


def test_a_mixture_is_split_by_document_and_stays_as_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path)
    made = prepare_text(tmp_path, tmp_path / "work")
    parts = [path.read_text().splitlines() for path in (made.train, made.held_out["mixture"])]
    assert list(made.held_out) == ["wiki", "mixture"]
    assert sum(map(len, parts)) == 400
    assert not set(parts[0]) & set(parts[1])
    assert 10 < len(parts[1]) < 50  # about one in 16
    counted = made.description["mixture"]["held_out"]
    assert sum(each["documents"] for each in counted.values()) == len(parts[1])
    before = made.train.stat().st_mtime_ns
    assert prepare_text(tmp_path, tmp_path / "work").description == made.description
    assert made.train.stat().st_mtime_ns == before  # or tokens would be made again
    (tmp_path / "two.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    assert prepare_text(tmp_path, tmp_path / "work").description != made.description


def test_a_folder_without_a_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--text: .* holds no \.jsonl"):
        prepare_text(tmp_path, tmp_path / "work")


def test_tasks_find_their_data_wherever_the_command_runs(tmp_path: Path) -> None:
    for folder in ("given/tasks", "given/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "given/data/a.jsonl").write_text("{}\n")
    task = "task: own_task\ndataset_kwargs: {data_files: {test: ../given/data/a.jsonl}}\n"
    (tmp_path / "given/tasks/a.yaml").write_text(task)
    with pytest.raises(ValueError, match="'own_task' has no metric acc"):
        prepare_tasks(tmp_path / "given" / "tasks", tmp_path / "work")
    (tmp_path / "given/tasks/a.yaml").write_text(f"{task}metric_list: [{{metric: acc}}]\n")
    names, digests = prepare_tasks(tmp_path / "given" / "tasks", tmp_path / "work")
    assert names == ["own_task"]
    assert digests.keys() == {"a.yaml", "a.jsonl"}
    assert str(tmp_path / "given/data/a.jsonl") in (tmp_path / "work" / "a.yaml").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_with_and_without_the_refit(method: str) -> None:
    names = with_and_without_refit(method)
    if "layers" in method:  # shapes are measured with a refit
        assert names == [method]
        return
    refits = [compose_config(["name=a", *method_overrides(name)]).prune.method.refit for name in names]
    own = "sequential" if method.startswith("default") else "least_squares"
    assert sorted(refits) == sorted([own, "none"])
    assert names[0] == method
    assert with_and_without_refit(names[1]) == names[1:]


def test_the_recipe_in_fewer_rounds_has_the_tokens_and_rates_of_its_eight() -> None:
    def ramp(method: str) -> tuple[list[float], list[float]]:
        config = compose_config(["name=a", *method_overrides(method)])
        assert config.prune.rounds == len(config.recover.token_shares)
        return list(config.recover.token_shares), list(config.recover.learning_rates)

    assert ramp("paper recipe")[0] == [7, 9, 11, 13, 15, 17, 19, 21]
    assert ramp("paper recipe, 4 rounds") == ([16, 24, 32, 40], [2.5e-5, 5e-5, 7.5e-5, 1e-4])
    assert ramp("paper recipe, 2 rounds") == ([40, 72], [5e-5, 1e-4])
    assert ramp("paper recipe, 1 round") == ([112], [1e-4])
    assert compose_config(["name=a", *method_overrides("default, 4 rounds")]).prune.rounds == 4


def test_half_the_cache_is_a_limit_beside_that_of_parameters() -> None:
    row = Row(method="default, half the cache", fraction=0.5)
    row.check()
    prune = compose_config(["name=a", *method_overrides(row.method), "prune.budget.parameters=0.6"]).prune
    assert prune.budget.asked() == {"parameters": 0.6, "kv_bytes_per_token": 0.5}
    assert prune.remove_fraction is None and prune.split == "auto"


def test_several_rounds_are_for_rows_that_recover() -> None:
    """Without recovery the first round alone would be cut, and the row be of another share than it says."""
    Row(method="default, 4 rounds", fraction=0.5, tokens=8).check()
    Row(method="paper recipe, 1 round", fraction=0.5).check()
    for row in (
        Row(method="default, 4 rounds", fraction=0.5),
        Row(method="paper recipe", fraction=0.5, tasks=True),
        Row(method="flap, 2 rounds", fraction=0.5, tokens=8),
    ):
        with pytest.raises(ValueError, match=rf"^'{row.method}' has . rounds: "):
            row.check()


@pytest.mark.parametrize("method", ["nonsense", "norms, nonsense"])
def test_a_method_that_does_not_exist_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        method_overrides(method)


def test_a_result_goes_on_with_more_rows_but_not_with_other_settings(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    fixed = {"settings": {"seed": 0}, "model": {"name": "a"}}
    assert begun_result(output, fixed, [])["rows"] == []
    now = {"method": "default", "revision": git_revision()}  # measured again already, by a call that was stopped
    rows = [{"method": "norms", "revision": "a"}, {"method": "default", "revision": "a"}, now]
    output.write_text(json.dumps(fixed | {"tasks": {}, "rows": rows}))
    assert begun_result(output, fixed | {"tasks": {"a.yaml": "digest"}}, [])["rows"] == rows
    assert begun_result(output, fixed, ["default"])["rows"] == [rows[0], now]
    with pytest.raises(ValueError, match=r"another settings \(seed 0 -> 1\)"):
        begun_result(output, fixed | {"settings": {"seed": 1}}, [])
    output.write_text(json.dumps(fixed | {"tasks": {"a.yaml": "another"}, "rows": rows}))
    with pytest.raises(ValueError, match=r"another tasks"):
        begun_result(output, fixed | {"tasks": {"a.yaml": "digest"}}, [])


def test_the_summary_finds_the_dense_row_wherever_it_stands() -> None:
    """Measured again, it comes last."""

    def row(method: str, fraction: float, perplexity: float, tokens: int = 0) -> dict[str, Any]:
        figures = {"perplexity": {"wiki": perplexity}, "kv_bytes_per_token": 100 if method == "dense" else 40}
        return {"method": method, "fraction": fraction, "recovery_tokens": tokens, **figures}

    rows = [row("default", 0.5, 40.0), row("default", 0.5, 30.0, tokens=8), row("dense", 0.0, 20.0)]
    lines = real_model_summary({"model": {"name": "a"}, "rows": rows}).splitlines()
    assert lines[2:] == [
        "| nothing removed | 20.0 | | 100% |",
        "| `default`, the default method | 40.0 | 30.0 | 40% |",
    ]


def test_a_part_of_a_measurement_does_not_replace_the_published_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["one", "two"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "sizes.json")
    for allowed in (["--jobs=1"], ["--sizes", "one", f"--output={tmp_path / 'one.json'}"]):
        monkeypatch.setattr("sys.argv", ["sizes", *allowed])
        parse_whole(parser)
    monkeypatch.setattr("sys.argv", ["sizes", "--sizes", "one"])
    with pytest.raises(SystemExit):
        parse_whole(parser)
    assert "with --sizes the result is not the published one: name another --output" in capsys.readouterr().err


def test_another_package_than_the_one_that_is_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=rf"{WHEEL}' has SHA-256 [0-9a-f]{{64}}, it must be {WHEEL_SHA256}"):
        smollm2_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
