"""The whole command on a tiny model: what it leaves behind, and that ranks do not change it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.e2e.conftest import RANKS, ChainRun
from tests.support.commands import Workplace
from tests.support.selections import assert_same_choices
from tests.support.wandb_files import records, series
from transact.config.compose import typed_config
from transact.estimate.contents import forecast
from transact.runs.metrics import read_metrics
from transact.tracking.dashboard.definitions import RUNS, SWEEPS


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_result_has_the_promised_fields(chain_runs: Mapping[int, Path]) -> None:
    result = read(chain_runs[2] / "result.json")
    assert result["name"] == "ranks_2"
    assert result["world_size"] == 2
    assert result["restarts"] == 0
    assert result["remove_fraction"]["asked"] == 0.4
    assert result["remove_fraction"]["reached"] == pytest.approx(0.4, abs=0.02)
    assert [each["round"] for each in result["rounds"]] == [1, 2]
    assert {"parameters", "kv_bytes_per_token", "flops_per_token", "perplexity", "tasks", "geometry"} <= set(
        result["pruned"]
    )
    assert result["pruned"]["parameters"] == result["rounds"][-1]["parameters"] < result["dense"]["parameters"]
    assert set(result["seconds"]) == {
        "evaluate",
        "calibrate",
        "gram",
        "select",
        "slice",
        "recover",
        "export",
        "efficiency",
    }


def test_the_result_says_what_the_model_costs_to_run(chain_runs: Mapping[int, Path]) -> None:
    result = read(chain_runs[2] / "result.json")
    (row,) = result["efficiency"]["latency"]
    assert row["models"]["pruned"]["decode"]["bytes"] < row["models"]["parent"]["decode"]["bytes"]
    assert row["speed_ups"]["pruned"]["decode"]["speed_up"] > 0
    assert result["efficiency"] == read(chain_runs[2] / "efficiency.json")
    figures = records(next((chain_runs[2] / "wandb").glob("offline-run-*")), "summary")
    assert any("efficiency/decode_speed_up" in json.dumps(each) for each in figures)


def test_every_promised_file_is_there_and_none_is_temporary(chain_runs: Mapping[int, Path]) -> None:
    folder = chain_runs[2]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    expected = {"config.yaml", "run.json", "metrics.jsonl", "result.json", "report.html", "round_00/evaluation.json"}
    for each in ("round_01", "round_02"):
        expected |= {
            f"{each}/{name}"
            for name in ("statistics.safetensors", "selection.json", "activation_maps.safetensors", "evaluation.json")
        }
    expected |= {f"round_02/{name}/config.json" for name in ("sliced", "recovered")}
    expected |= {"export/config.json", "export/model.safetensors", "export/README.md", "export/tokenizer.json"}
    assert expected <= names
    gone = ("gram", "round_01/sliced", "round_01/recovered")  # large, and of no use any more
    assert not [name for name in names if ".tmp" in name or any(each in name for each in gone)]


def test_number_of_ranks_changes_nothing_but_noise(chain_runs: Mapping[int, Path]) -> None:
    for name in ("round_01", "round_02"):
        selections = [read(chain_runs[ranks] / name / "selection.json") for ranks in RANKS]
        for each in selections[1:]:
            assert_same_choices(selections[0], each)
    results = [read(chain_runs[ranks] / "result.json") for ranks in RANKS]
    for role in ("dense", "pruned"):
        perplexities = [result[role]["perplexity"] for result in results]
        assert max(perplexities) <= 1.005 * min(perplexities)


def test_a_job_says_at_its_start_what_its_ranks_are_told_of_the_network(
    chain_commands: Mapping[int, ChainRun],
) -> None:
    first = chain_commands[4].ended.stdout.partition("\n")[0]
    assert first == "transport: GLOO_SOCKET_IFNAME=lo"


def test_recovery_helps_in_every_round(chain_runs: Mapping[int, Path]) -> None:
    for each in read(chain_runs[1] / "result.json")["rounds"]:
        assert each["perplexity_recovered"] < 0.98 * each["perplexity_sliced"]


def test_plain_transformers_measures_the_same_perplexity(chain_runs: Mapping[int, Path], workplace: Workplace) -> None:
    """The oracle of our evaluation: no engine, no ranks, no token store."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain_runs[2] / "export")
    ids = [*tokenizer(workplace.heldout.read_text())["input_ids"], tokenizer.eos_token_id]
    sequences = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)[:32]
    for role, folder in (("dense", workplace.model), ("pruned", chain_runs[2] / "export")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            loss = model(input_ids=sequences, labels=sequences).loss
        assert math.exp(loss) == pytest.approx(read(chain_runs[2] / "result.json")[role]["perplexity"], rel=1e-4)


def test_exported_model_generates_with_its_cache(chain_runs: Mapping[int, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chain_runs[2] / "export").eval()
    prompt = torch.arange(1, 9)[None]
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))


def test_metrics_have_every_step_once_and_rounds_follow_on(chain_runs: Mapping[int, Path]) -> None:
    rows = read_metrics(chain_runs[4] / "metrics.jsonl")
    steps = [row["step"] for row in rows if "recover/loss" in row]
    assert steps == list(range(1, 33))
    assert {row["round"] for row in rows if "prune/head_dim" in row} == {1, 2}
    assert {row["round"] for row in rows if "eval/perplexity_recovered" in row} == {1, 2}


def test_wandb_has_rounds_dimensions_and_perplexities(chain_runs: Mapping[int, Path]) -> None:
    """Read back from the file of rank 0, the only rank that writes one."""
    (folder,) = (chain_runs[2] / "wandb").glob("offline-run-*")
    rows = [record["item"] for record in records(folder, "history")]
    rounds = read(chain_runs[2] / "result.json")["rounds"]
    for name, expected in (
        ("prune/head_dim", [each["geometry"]["head_dim"] for each in rounds]),
        ("prune/intermediate_size", [each["geometry"]["intermediate_size"] for each in rounds]),
        ("eval/perplexity_sliced", [each["perplexity_sliced"] for each in rounds]),
        ("eval/perplexity_recovered", [each["perplexity_recovered"] for each in rounds]),
    ):
        assert series(rows, "prune/round", name) == list(zip([1, 2], expected, strict=True)), name
    losses = series(rows, "tokens", "recover/loss")
    assert [tokens for tokens, _ in losses] == [512 * step for step in range(1, 33)]


def test_the_dashboards_show_nothing_that_runs_do_not_log(chain_runs: Mapping[int, Path]) -> None:
    (folder,) = (chain_runs[2] / "wandb").glob("offline-run-*")
    logged = {name for kind in ("history", "summary") for each in records(folder, kind) for name in _names(each)}
    with_gpus = {"perf/mfu", "mem/allocated_peak_gib", "mem/reserved_peak_gib"}
    when_it_is_long = {"perf/checkpoint_s"}
    for definition in (RUNS, SWEEPS):
        assert definition.names() - logged - with_gpus - when_it_is_long == set()


def _names(record: dict[str, Any]) -> set[str]:
    """Of a table W&B keeps `name._type` and the like."""
    return {name.partition("._type")[0] for name in {**record.get("item", {}), **record.get("update", {})}}


def test_the_estimate_foretold_dimensions_and_disk(chain_commands: Mapping[int, ChainRun]) -> None:
    """mode=estimate with the run's own settings, beside what the run has left."""
    run = chain_commands[1]
    config = typed_config(yaml.safe_load((run.folder / "config.yaml").read_text()))
    found = forecast(config)
    rounds = read(run.folder / "result.json")["rounds"]
    assert [each["geometry"] for each in found["rounds"]] == [each["geometry"] for each in rounds]
    assert [each["parameters"] for each in found["rounds"]] == [each["parameters"] for each in rounds]
    left = {
        "sliced_and_recovered": size_of(run.folder, "round_*/sliced/*.safetensors", "round_*/recovered/*.safetensors"),
        "export": size_of(run.folder, "export/*.safetensors"),
        "token_store": size_of(run.token_store, "*/tokens.bin"),
    }
    for name, size in left.items():
        assert found["disk_bytes"][name] == pytest.approx(size, rel=0.03, abs=2048), name


def size_of(folder: Path, *patterns: str) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))


def test_the_page_tells_how_the_run_ended(chain_runs: Mapping[int, Path]) -> None:
    page = (chain_runs[2] / "report.html").read_text(encoding="utf-8")
    assert ">done<" in page
    assert "python -m transact.run" in page
