"""The points of a sweep, one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.configs import compose_config
from transact.config.run import RunConfig
from transact.files import write_json
from transact.run import run_all


@pytest.mark.parametrize(("state", "ran"), [("failed", 3), ("stopped", 2)])
def test_a_sweep_goes_on_after_a_point_that_failed_and_ends_with_one_that_was_stopped(
    state: str, ran: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def run(config: RunConfig, *, is_sweep: bool) -> int:
        begun.append(config.name)
        Path(config.output_dir).mkdir()
        ended = state if config.name == "b" else "done"
        write_json(Path(config.output_dir, "run.json"), {"state": ended, "error": "SIGINT"})
        return 0 if ended == "done" else 1

    monkeypatch.setattr("transact.run.run", run)
    points = [replace(compose_config(["name=x"]), name=name, output_dir=str(tmp_path / name)) for name in "abc"]
    assert run_all([(each, True) for each in points]) == 1
    assert begun == list("abc")[:ran]
    assert ("the sweep is stopped too, before c: " in capsys.readouterr().err) == (state == "stopped")
