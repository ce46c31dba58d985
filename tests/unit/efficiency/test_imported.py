"""Figures of other programs: read from their files, kept beside those before, and shown without false comparisons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.report_folders import MadeUpRun, write_run
from tests.unit.report.test_pages import words_of
from transact.__main__ import main
from transact.evaluation.efficiency.imported import IMPORTED, read_figures
from transact.files import read_json

LATENCY = {"model_id": "m", "avg_latency": 0.5, "latencies": [0.5], "percentiles": {}}
THROUGHPUT = {
    "model_id": "m",
    "elapsed_time": 2.0,
    "num_requests": 10,
    "total_num_tokens": 1500,
    "requests_per_second": 5.0,
    "tokens_per_second": 750.0,
}
SERVE = {
    "model_id": "m",
    "completed": 10,
    "total_input_tokens": 640,
    "total_output_tokens": 320,
    "request_rate": "inf",
    "max_concurrency": None,
    "output_throughput": 100.0,
    "mean_ttft_ms": 12.0,
    "mean_tpot_ms": 3.0,
}
SERVER = {
    "model": "m.gguf",
    "timings": {"prompt_n": 64, "predicted_n": 32, "prompt_per_second": 90, "predicted_per_second": 30},
}


def llama_bench(prompt: int, new: int, speed: float, model: str = "models/m.gguf") -> dict[str, Any]:
    return {
        "model_filename": model,
        "n_prompt": prompt,
        "n_gen": new,
        "n_depth": 0,
        "n_batch": 2048,
        "n_threads": 8,
        "n_gpu_layers": -1,
        "backends": "CUDA",
        "type_k": "f16",
        "type_v": "f16",
        "avg_ts": speed,
    }


def written(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


@pytest.mark.parametrize(
    ("content", "figures"),
    [
        (LATENCY, [("a batch from prompt to end", "ms", 500.0)]),
        (THROUGHPUT, [("prompts and answers", "tokens/s", 750.0)]),
        (SERVE, [("answers", "tokens/s", 100.0), ("first token", "ms", 12.0), ("each further token", "ms", 3.0)]),
        (SERVER, [("prompt", "tokens/s", 90.0), ("answer", "tokens/s", 30.0)]),
        (
            [llama_bench(512, 0, 7100), llama_bench(0, 128, 80)],
            [("prompt", "tokens/s", 7100.0), ("answer", "tokens/s", 80.0)],
        ),
    ],
    ids=["latency", "throughput", "serve", "server", "llama-bench"],
)
def test_every_program_s_file(tmp_path: Path, content: Any, figures: list[tuple[str, str, float]]) -> None:
    found = read_figures(written(tmp_path, "file.json", content), "pruned")
    assert [(each.what, each.unit, each.value) for each in found] == figures
    assert {each.role for each in found} == {"pruned"} and len({each.model for each in found}) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"speed": 3}, "holds no figures that are known; it must be of vllm bench"),
        ([], "holds no figures that are known"),
        (THROUGHPUT | {"tokens_per_second": "fast"}, "lacks a part of what its program writes, or it is no number"),
        (
            THROUGHPUT | {"tokens_per_second": float("nan")},
            "lacks a part of what its program writes, or it is no number",
        ),
        (
            [llama_bench(512, 0, 1), llama_bench(512, 0, 1, "b.gguf")],
            "holds figures of b.gguf, m.gguf; a file may hold",
        ),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_figures(written(tmp_path, "file.json", content), "pruned")


def run_import(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["transact", "import", *arguments])
    return main()


def test_both_models_stand_beside_each_other_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the setting is one; a latency whose file does not say it is not compared, until the user does."""
    run = write_run(tmp_path / "run", MadeUpRun())
    slow = written(tmp_path, "slow.json", [llama_bench(512, 0, 1000), llama_bench(0, 128, 50)])
    fast = written(tmp_path, "fast.json", [llama_bench(512, 0, 1730), llama_bench(0, 64, 71)])
    assert run_import(monkeypatch, str(run), "--parent", str(slow), "--pruned", str(fast)) == 0
    late, soon = (written(tmp_path, name, LATENCY | {"avg_latency": s}) for name, s in (("late", 0.9), ("soon", 0.4)))
    assert run_import(monkeypatch, str(run), "--parent", str(late), "--pruned", str(soon)) == 0
    shown = words_of((run / "report.html").read_text(encoding="utf-8"))
    assert shown.count("1.73") == 1 and "2.25" not in shown
    again = [str(run), "--parent", str(late), "--pruned", str(soon), "--setting", "64+32 tokens, batch 8"]
    assert run_import(monkeypatch, *again) == 0
    assert "2.25" in words_of((run / "report.html").read_text(encoding="utf-8"))
    rows = read_json(run / IMPORTED)["figures"]
    assert run_import(monkeypatch, *again) == 0 and read_json(run / IMPORTED)["figures"] == rows


def test_files_of_two_models_for_one_role_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The later one would stand for both."""
    run = write_run(tmp_path / "run", MadeUpRun())
    files = [str(written(tmp_path, name, [llama_bench(512, 0, 90, f"{name}.gguf")])) for name in ("q8", "q4")]
    assert run_import(monkeypatch, str(run), "--pruned", *files) == 2
    assert "--pruned: llama-bench measured q4.gguf, q8.gguf in one setting" in capsys.readouterr().err
    assert not (run / IMPORTED).exists()
    for file in files:  # one after the other, the newer counts
        assert run_import(monkeypatch, str(run), "--pruned", file) == 0
    assert [row["model"] for row in read_json(run / IMPORTED)["figures"]] == ["q4.gguf"]


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["."], "is no run's folder"), (["RUN"], "there is nothing to import")]
)
def test_wrong_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    run = write_run(tmp_path / "run", MadeUpRun())
    assert run_import(monkeypatch, *[str(run) if each == "RUN" else str(tmp_path) for each in arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not (run / IMPORTED).exists()
