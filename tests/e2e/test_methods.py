"""Methods through the whole command: what is exported, what is refused, what is measured first."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.commands import Workplace, transact

ONE_ROUND = ["prune.rounds=1", "recover.tokens=2048", "recover.validations=1", "eval.efficiency.measured=false"]


def run(workplace: Workplace, name: str, *overrides: str) -> tuple[Path, str]:
    """A finished run of one round: its folder, and what it said."""
    done = transact([*workplace.overrides(name), *ONE_ROUND, *overrides])
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace.folder / name, done.stdout + done.stderr


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("method", ["paper_heads", "paper_dims", "taylor", "parallel", "obs"])
def test_methods_export_a_stock_model(workplace: Workplace, method: str) -> None:
    folder, _ = run(workplace, f"method_{method}", f"prune/method={method}")
    model = AutoModelForCausalLM.from_pretrained(folder / "export")
    result = read(folder / "result.json")
    assert model.num_parameters() == result["pruned"]["parameters"] < result["dense"]["parameters"]
    assert (model.config.num_attention_heads < 4) == (method == "paper_heads")
    assert (model.config.head_dim < 16) == (method != "paper_heads")


def test_pairs_per_head_are_exported_with_the_code_that_rotates_them(workplace: Workplace) -> None:
    folder, said = run(workplace, "per_head", "prune.method.pair_scope=head")
    assert "export: layers differ: transformers builds them by the code in the folder (trust_remote_code=True)" in said
    card = (folder / "export" / "README.md").read_text()
    assert "trust_remote_code=True" in card and "`own_rotation_llama.py` and `layerwise_llama.py`" in card
    model = AutoModelForCausalLM.from_pretrained(folder / "export", trust_remote_code=True)
    assert model.num_parameters() == read(folder / "result.json")["pruned"]["parameters"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder / "export")


def test_the_measured_split_is_the_best_and_is_what_is_cut(workplace: Workplace) -> None:
    overrides = ["prune.split=auto", "prune.rounds=2", "recover.objective=mixed"]
    folder, _ = run(workplace, "auto_split", *overrides)
    split, selection = read(folder / "round_01" / "split.json"), read(folder / "round_02" / "selection.json")
    assert len(split["candidates"]) > 1
    best = min(split["candidates"], key=lambda row: row["loss"])
    assert selection["target"] == best["geometry"] == split["chosen"]
    assert {path.name for path in (folder / "round_01").iterdir()} == {
        "statistics.safetensors",
        "split.json",
        "selection.json",
        "activation_maps.safetensors",
        "evaluation.json",
    }
    # The same command again finds everything finished, though the Gram matrices are gone.
    _, said = run(workplace, "auto_split", *overrides)
    assert "calibrate  " not in said and "gram pass" not in said and "split: head_dim" not in said


def test_a_single_round_takes_over_the_selection_of_its_split(workplace: Workplace) -> None:
    """One elimination for all candidates and for the selection; the candidates have a bar."""
    overrides = ["prune.split=auto", "prune.method.channels=obs", "recover.tokens=0", "track.progress_seconds=1"]
    folder, said = run(workplace, "one_round_split", *overrides)
    split, selection = read(folder / "round_01" / "split.json"), read(folder / "round_01" / "selection.json")
    assert len(split["candidates"]) > 1
    assert split["selection"] == selection and selection["target"] == split["chosen"]
    assert said.count("choose MLP channels  layers=") == said.count("choose MLP channels  layers=2/2") == 1
    (ended,) = re.findall(r"measure splits  candidates=(\d+)/(\d+)  100%", said)
    assert ended[0] == ended[1]


def test_a_split_under_a_limit_of_the_cache_measures_fewer_heads_from_the_best_size_on(workplace: Workplace) -> None:
    limits = ["prune=budget", "prune.budget.parameters=0.5", "prune.budget.kv_bytes_per_token=0.9"]
    asked = [*limits, "prune.remove_fraction=null", "prune.split=auto", "recover.tokens=0"]
    folder, _ = run(workplace, "fewer_heads", *asked)
    rows = [(row["geometry"], row["loss"]) for row in read(folder / "round_01" / "split.json")["candidates"]]
    whole = [(loss, geometry["head_dim"]) for geometry, loss in rows if geometry["num_key_value_heads"] == 2]
    fewer = [geometry["head_dim"] for geometry, _ in rows if geometry["num_key_value_heads"] == 1]
    assert fewer == [size for size in (16, 12, 8, 4) if size >= min(whole)[1]] and len(whole) == 3
    folder, _ = run(workplace, "all_heads", *asked, "prune.multiple.num_key_value_heads=2")
    candidates = read(folder / "round_01" / "split.json")["candidates"]
    assert [row["geometry"]["num_key_value_heads"] for row in candidates] == [2] * len(whole)


def test_gains_are_for_the_last_round_that_cuts_pairs(workplace: Workplace) -> None:
    overrides = ["prune.rounds=2", "recover.tokens=0"]
    folder, _ = run(workplace, "gains", *overrides)
    first, last = (read(folder / name / "selection.json") for name in ("round_01", "round_02"))
    assert first["target"]["head_dim"] < first["source"]["head_dim"] and first["pair_gains"] is None
    assert last["target"]["head_dim"] < last["source"]["head_dim"] and last["pair_gains"] is not None


def test_damaged_weights_are_named_before_any_work(workplace: Workplace, tmp_path: Path) -> None:
    model = tmp_path / "damaged"
    shutil.copytree(workplace.model, model)
    damaged = "model.layers.1.mlp.up_proj.weight"
    shard = model / read(model / "model.safetensors.index.json")["weight_map"][damaged]
    weights = load_file(shard)
    weights[damaged][3] = float("nan")
    save_file(weights, shard, metadata={"format": "pt"})
    done = transact([*workplace.overrides("damaged"), *ONE_ROUND, f"model.path={model}"])
    assert done.returncode == 2
    assert f"{damaged} in '{shard}' holds values that are not numbers (NaN)" in done.stderr
    assert not (workplace.folder / "damaged").exists()


def test_less_calibration_text_than_channels(workplace: Workplace) -> None:
    """128 tokens for 160 MLP channels: the Gram matrix is singular, the ridge carries the refit."""
    overrides = ["prune.calibration_sequences=2", "recover.tokens=0"]
    folder, said = run(workplace, "short_calibration", *overrides)
    assert "warning: 128 calibration tokens are few for 160 channels" in said
    plain, _ = run(workplace, "short_calibration_plain", *overrides, "prune.method.refit=none")
    refitted, cut = (read(each / "result.json")["rounds"][0]["perplexity_sliced"] for each in (folder, plain))
    assert refitted < 1.05 * cut
    assert_nothing_was_recovered(folder, said)


def assert_nothing_was_recovered(folder: Path, said: str) -> None:
    """recover.tokens=0: the cut is measured once, under its own name, in every file and on the console."""
    result, evaluation = read(folder / "result.json"), read(folder / "round_01" / "evaluation.json")
    assert set(evaluation) == {"sliced"}
    assert result["rounds"][0]["perplexity_recovered"] is None
    assert result["pruned"]["perplexity"] == result["rounds"][0]["perplexity_sliced"]
    assert not any("recover" in stage for stage in read(folder / "run.json")["stages"])
    assert not (folder / "round_01" / "recovered").exists()
    assert "round 1 sliced" in said and "round 1: sliced perplexity" in said
    assert "recovered" not in said
    last = AutoModelForCausalLM.from_pretrained(folder / "export")
    assert last.num_parameters() == result["pruned"]["parameters"]
