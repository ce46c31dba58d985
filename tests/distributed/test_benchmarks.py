"""The benchmarks run: the same code as on a GPU, at a size of seconds. Figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.commands import REPOSITORY, environment

# Packages that a GPU machine may lack. A None in sys.modules makes an import fail as if it were not installed.
ABSENT = ("hydra", "omegaconf", "datasets", "pyarrow", "wandb", "submitit", "accelerate", "rich")
START_WITHOUT = "import runpy, sys; sys.modules.update(dict.fromkeys({absent!r})); sys.argv = {argv!r}; "
RUN_MODULE = "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def run(command: list[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def result_of(process: subprocess.CompletedProcess[str], path: Path) -> dict[str, Any]:
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(path.read_text())
    assert isinstance(result, dict)
    return result


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = run(["-m", "benchmarks.gpu_check", "--output", str(output)])
    assert process.returncode == 0, process.stderr
    assert "there is no GPU" in process.stdout
    assert not output.exists()


def test_gpu_check_needs_none_of_the_packages_for_configuration_and_tracking(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    argv = ["gpu_check", "--device=cpu", "--size=tiny", f"--folder={tmp_path}", f"--output={output}"]
    code = START_WITHOUT.format(absent=ABSENT, argv=argv) + RUN_MODULE.format(module="benchmarks.gpu_check")
    result = result_of(run(["-c", code]), output)
    assert result["same_units_as_cpu"]["float32"] == 1.0
    assert result["perplexity"]["recovered"] <= result["perplexity"]["sliced"]
    assert {"round_01/slice", "round_01/recover", "export"} <= result["stages"].keys()
    assert result["tokens_per_s"] > 0
    assert list(tmp_path.iterdir()) == [output]  # the working folder is gone


def test_gpu_check_runs_under_torchrun(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "benchmarks.gpu_check"]
    result = result_of(run([*launcher, "--device=cpu", "--size=tiny", f"--output={output}"]), output)
    assert result["world_size"] == 2
    assert result["same_units_as_cpu"]["float32"] == 1.0


def test_throughput_compares_three_loops_on_two_ranks(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    small = ["--size=tiny", "--steps=2", "--repetitions=1", "--sequence-length=32", "--micro-batch-sequences=2"]
    more = ["--accumulation=2", "--processes=2", "--device=cpu", f"--output={output}"]
    result = result_of(run(["-m", "benchmarks.throughput", *small, *more]), output)
    assert result["world_size"] == 2
    assert result["tokens_per_s"].keys() == {"ours", "bare_deepspeed", "plain_pytorch"}
    assert min(result["tokens_per_s"].values()) > 0


def test_calibration_overhead(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    small = ["--sizes", "tiny", "--repetitions=2", "--sequence-length=32", "--device=cpu", f"--output={output}"]
    result = result_of(run(["-m", "benchmarks.calibration_overhead", *small]), output)
    assert result["sizes"]["tiny"]["ratio"] > 0
