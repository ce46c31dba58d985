"""The whole job on other families: pruned, recovered and exported to their own stock classes, and to GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.commands import Workplace, transact
from tests.support.tiny import train_tokenizer
from tests.support.tiny_families import STOCK_CLASSES, write_family_model
from transact.files import read_json

SHORT = [
    "eval.efficiency.measured=false",
    "prune.rounds=1",
    "recover.tokens=8192",
    "prune.multiple.intermediate_size=32",
]


@pytest.mark.parametrize(
    ("family", "ranks", "overrides"),
    [
        ("mistral", 1, ["export.gguf=q4_k_m", "prune.multiple.head_dim=8"]),
        ("qwen2", 2, ["export.gguf=f16", "recover.objective=distillation"]),
        ("qwen3", 2, ["export.gguf=f16", "prune.rotary_pairs=progression"]),
        ("qwen3", 1, ["prune/method=parallel"]),
    ],
)
def test_job(workplace: Workplace, tmp_path: Path, family: str, ranks: int, overrides: list[str]) -> None:
    parent = write_family_model(tmp_path / "parent", family, intermediate_size=192)
    train_tokenizer(workplace.train).save_pretrained(parent)
    run = [*workplace.overrides("family"), f"output_dir={tmp_path}/run", f"model.path={parent}", *SHORT, *overrides]
    done = transact(run, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float32)
    assert type(model).__name__ == f"{STOCK_CLASSES[family]}ForCausalLM"
    result = read_json(folder / "result.json")
    (each,) = result["rounds"]
    assert model.num_parameters() == result["pruned"]["parameters"] < result["dense"]["parameters"]
    assert result["pruned"]["geometry"]["head_dim"] < 16
    assert each["perplexity_recovered"] < each["perplexity_sliced"]
    kinds = [override.partition("=")[2] for override in overrides if override.startswith("export.gguf")]
    assert [path.name for path in folder.glob("gguf/*")] == [f"family-{kind}.gguf" for kind in kinds]
    assert ("llama.cpp loads it" in done.stdout) == bool(kinds)


def test_another_type_later_adds_its_file_alone(workplace: Workplace, tmp_path: Path) -> None:
    """The model card says: the command of the run, once more, with export.gguf."""
    run = [*workplace.overrides("later"), f"output_dir={tmp_path}/run", *SHORT, "recover.tokens=0"]
    assert transact(run).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "export").iterdir()}
    done = transact([*run, "export.gguf=f16"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "export").iterdir()} == before
    assert (tmp_path / "run" / "gguf" / "later-f16.gguf").is_file()
