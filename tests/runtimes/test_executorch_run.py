"""`export.executorch` in a whole job, with transact and ExecuTorch in one environment, as users have them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.runtimes.environments import ask, python_of
from tests.support.commands import REPOSITORY, environment, make_workplace
from transact.estimate.storage import executorch_bytes
from transact.files import read_json
from transact.models.folder import geometry_of
from transact.models.stock import load_model

pytestmark = [pytest.mark.runtimes, pytest.mark.nightly]


def run(overrides: list[str]) -> str:
    """The command in ExecuTorch's environment; what it printed."""
    asked = [str(python_of("executorch")), "-m", "transact.run", *overrides, "export.executorch=xnnpack"]
    done = subprocess.run(
        asked, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_file_of_a_run_computes_what_its_folder_does(tmp_path: Path) -> None:
    """And the same command with another context writes that file alone anew."""
    place = make_workplace(tmp_path)
    less = ["recover.tokens=0", "prune.rounds=1", "eval.efficiency.measured=false", "export.executorch_context=48"]
    overrides = [*place.overrides("phone"), *less]
    said = run(overrides)
    folder = tmp_path / "phone"
    file = folder / "executorch" / "phone-xnnpack_48.pte"
    assert f"for ExecuTorch: {file}" in said and "holds 48 tokens" in said
    assert read_json(folder / "result.json")["executorch"] == {
        "file": "executorch/phone-xnnpack_48.pte",
        "bytes": file.stat().st_size,
    }
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert file.stat().st_size == pytest.approx(executorch_bytes(geometry_of(folder / "export")), rel=0.02, abs=250_000)

    prompt = torch.arange(8, 20)
    model = load_model(folder / "export", dtype=torch.float32)
    settings = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(prompt.unsqueeze(0), **settings)[0, len(prompt) :].tolist()
    question = {"prompt": prompt.tolist(), "new_tokens": 30, "models": {"phone": str(file)}}
    assert ask("in_executorch", question, tmp_path)["phone"]["tokens"] == expected

    export = (folder / "export" / "model.safetensors").stat()
    again = run([*overrides, "export.executorch_context=64"])
    assert "holds 64 tokens" in again and "export: already finished" in again
    assert (folder / "export" / "model.safetensors").stat() == export
