"""Wrong requests end in one line before anything is asked of another environment, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.support.report_folders import MadeUpRun, write_run
from transact.errors import FAILED, REFUSED
from transact.quantize import finished_run
from transact.quantize.command import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == REFUSED
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_a_scheme_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, str(tmp_path), "--python", "p", "--schemes", "fp8", "int3")
    assert "'int3' is no scheme: allowed are w4a16, w8a8, fp8" in said


def test_a_folder_that_holds_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refusal(capsys, str(tmp_path), "--python", "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state", ["running", "failed", "done"])
def test_a_run_without_an_export(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(state=state))
    assert f"is not finished ({state}): it has no export yet" in refusal(capsys, str(folder), "--python", "p")
    assert not (folder / "quantized").exists()


def test_no_environment_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "the following arguments are required: --python" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("cut off")])
def test_what_cannot_be_written_ends_in_one_line(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(finished_run, "read_finished_run", broken)
    assert main([str(tmp_path), "--python", "p"]) == FAILED
    assert capsys.readouterr().err.count("\n") == 1
