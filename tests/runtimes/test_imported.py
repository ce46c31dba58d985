"""Figures of other software: what it writes today is what `transact import` reads, and vLLM tries a draft."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.runtimes.environments import ask, python_of
from tests.support.report_folders import MadeUpRun, write_run
from tests.support.tiny import train_tokenizer, write_text_files
from tests.support.tiny_families import write_family_model
from transact.__main__ import main
from transact.evaluation.efficiency.draft_in_vllm import PROPOSALS, measure_in_vllm
from transact.evaluation.efficiency.imported import IMPORTED
from transact.export.gguf import write_gguf
from transact.files import read_json

pytestmark = pytest.mark.runtimes


def test_figures_of_today_s_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM's benchmark of latency takes token ids up to 10,000.
    model = write_family_model(tmp_path / "model", "llama", vocab_size=10_000, head_dim=32)
    train_tokenizer(write_text_files(tmp_path / "text")[0]).save_pretrained(model)
    write_gguf(model, tmp_path / "model.gguf", "f32", "model")
    asked = {"prompt": list(range(20, 40)), "new_tokens": 8}
    written = ask("bench_in_vllm", {**asked, "models": {"model": str(model)}}, tmp_path)["model"]
    written |= ask("completion_in_llama_cpp", {**asked, "models": {"server": str(tmp_path / "model.gguf")}}, tmp_path)
    assert set(written) == {"latency", "throughput", "server"}, written
    files = []
    for name, content in written.items():
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps(content))
    run = write_run(tmp_path / "run", MadeUpRun())
    monkeypatch.setattr(sys, "argv", ["transact", "import", str(run), "--pruned", *files])
    assert main() == 0
    rows = read_json(run / IMPORTED)["figures"]
    assert [(row["software"], row["what"], row["setting"] is None) for row in rows] == [
        ("vllm bench latency", "a batch from prompt to end", True),
        ("vllm bench throughput", "prompts and answers", False),
        ("llama.cpp's server", "prompt", False),
        ("llama.cpp's server", "answer", False),
    ]
    assert rows[3]["setting"] == "20+8 tokens"


def test_a_model_is_its_own_best_draft_in_vllm(tmp_path: Path) -> None:
    """All proposals are accepted, and a forward makes one token more than were proposed."""
    model = write_family_model(tmp_path / "model", "llama", head_dim=32)
    train_tokenizer(write_text_files(tmp_path / "text")[0]).save_pretrained(model)
    prompts = [list(range(start, start + 12)) for start in (10, 40)]
    found = measure_in_vllm(python_of("vllm"), model, model, prompts, 9, 1, "float32")
    assert found["acceptance_rate"] == 1 and found["same_tokens"] == 1
    assert found["tokens_per_parent_forward"] == 9 / (1 + 8 / (PROPOSALS + 1))
    assert found["wall_speed_up"] > 0
