"""A run keeps to the parent that it began with, and a parent that cannot be used ends it before any training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.commands import Workplace, transact, transact_as_users_do
from tests.support.hub import serving
from tests.support.tiny import write_model

SHORT = ["prune.rounds=1", "recover.tokens=0", "data.evaluation_sequences=8"]


def parent_in(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text())["parent"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def other_weights(model: Path, where: Path, seed: int) -> Path:
    """The same model with another random start."""
    other = Path(shutil.copytree(model, where))
    for path in other.glob("model-*.safetensors"):
        torch.manual_seed(seed)
        tensors = {name: torch.randn_like(tensor) / 10 for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return other


def test_another_parent_is_refused_and_one_that_moved_is_not(workplace: Workplace, tmp_path: Path) -> None:
    model = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    overrides = [*workplace.overrides("moved"), *SHORT]
    run = workplace.folder / "moved"
    first = transact([*overrides, f"model.path={model}"])
    assert first.returncode == 0, first.stderr
    recorded = parent_in(run)
    assert recorded["path"] == str(model) and recorded["commit"] is None
    assert {"config.json", "tokenizer.json", "model-00001-of-00005.safetensors"} <= recorded["files"].keys()

    replaced, before = other_weights(model, tmp_path / "replaced", seed=1), contents(run)
    ended = transact([*overrides, f"model.path={replaced}"])
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "is not the model that the run in" in line and "model-0000" in line
    assert "Traceback" not in ended.stderr
    assert contents(run) == before

    model.rename(tmp_path / "new_place")
    ended = transact([*overrides, f"model.path={tmp_path / 'new_place'}", "engine.verify=full"])
    assert ended.returncode == 0, ended.stderr
    assert "export: already finished" in ended.stdout + ended.stderr
    recorded = parent_in(run)
    assert recorded["path"] == str(tmp_path / "new_place")
    assert all("sha256" in entry for entry in recorded["files"].values())


def test_a_name_on_the_hub_is_resolved_once(workplace: Workplace, tmp_path: Path) -> None:
    """Its branch moves between two attempts: the second, on more ranks, stays with the first one's commit."""
    overrides = [*workplace.overrides("of_the_hub"), *SHORT, "model.path=owner/tiny"]
    run = workplace.folder / "of_the_hub"
    with serving() as hub:
        variables = hub.variables(tmp_path / "cache")
        first_commit = hub.add("models", "owner/tiny", workplace.model)
        ended = transact_as_users_do(overrides, variables=variables)
        assert ended.returncode == 0, ended.stderr
        recorded = parent_in(run)
        assert (recorded["hub_id"], recorded["commit"]) == ("owner/tiny", first_commit)

        second_commit = hub.add("models", "owner/tiny", other_weights(workplace.model, tmp_path / "second", seed=2))
        hub.asked.clear()
        ended = transact_as_users_do(overrides, ranks=2, variables=variables)
        assert ended.returncode == 0, ended.stderr
        assert not any("main" in path or second_commit in path for path in hub.asked)
    assert parent_in(run) == recorded
    card = (run / "export" / "README.md").read_text()
    assert "base_model: owner/tiny" in card


def scaled(name: str, factor: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob("model*.safetensors"):
            tensors = load_file(path)
            if name in tensors:
                save_file(tensors | {name: tensors[name] * factor}, path, metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(("tensor", "factor"), [("model.norm.weight", 0.0), ("model.norm.weight", 1e4)])
def test_a_parent_that_knows_nothing_ends_before_any_training(
    workplace: Workplace, tmp_path: Path, tensor: str, factor: float
) -> None:
    """Finite weights: only its perplexity shows."""
    model = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    scaled(tensor, factor)(model)
    name = f"ignorant_{factor:.0f}"
    ended = transact([*workplace.overrides(name), f"model.path={model}"])
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "round_00/evaluate: the parent's perplexity" in line and "uniform guess among 512 tokens" in line
    assert "Traceback" not in ended.stderr
    record = json.loads((workplace.folder / name / "run.json").read_text())
    assert (record["state"], record["stages"]) == ("failed", {})
    assert record["error"] in line


def test_a_parent_whose_activations_overflow_ends_before_any_cut(workplace: Workplace, tmp_path: Path) -> None:
    """Finite weights and a finite perplexity: only the calibration shows it, which blames no rank for it."""
    model = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    scaled("model.layers.1.self_attn.k_proj.weight", 1e30)(model)
    ended = transact([*workplace.overrides("overflowing"), f"model.path={model}"])
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"round_01/calibrate: {model}: activations of layer 1 are infinite or not numbers (key)" in line
    assert "Traceback" not in ended.stderr
    record = json.loads((workplace.folder / "overflowing" / "run.json").read_text())
    assert (record["state"], list(record["stages"])) == ("failed", ["round_00/evaluate"])


def test_an_output_layer_that_is_stored_and_tied(workplace: Workplace, tmp_path: Path) -> None:
    """Transformers 4 computes another model of it than 5: the user says which."""
    model = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    for path in model.glob("model*"):
        path.unlink()
    write_model(model)
    (path,) = model.glob("model*.safetensors")
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding + 1}, path, metadata={"format": "pt"})
    ended = transact([*workplace.overrides("both"), f"model.path={model}"])
    assert ended.returncode == 2
    assert "tie_word_embeddings=true, but lm_head.weight" in ended.stderr
    assert not (workplace.folder / "both").exists()
