"""The tracker writes the truth first; W&B may fail as it likes."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transact.runs.metrics import MetricsLog, read_metrics
from transact.tracking import wandb_run
from transact.tracking.tracker import Tracker
from transact.tracking.wandb_run import WandbRun


class FakeWandb:
    """Stands in for the object that `wandb.init` returns."""

    def __init__(self, fails_at_row: int | None = None) -> None:
        self.dir = "/runs/wandb/offline-run-1/files"
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_codes: list[int] = []
        self.fails_at_row = fails_at_row

    def log(self, row: dict[str, Any]) -> None:
        if len(self.rows) == self.fails_at_row:
            raise ConnectionResetError("Connection lost\nand a second line")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


Started = Callable[[FakeWandb], WandbRun]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    def start(fake: FakeWandb) -> WandbRun:
        monkeypatch.setattr(wandb_run, "initialise", lambda *_: fake)
        run = WandbRun()
        names: dict[str, Any] = {"project": "p", "entity": None, "group": None, "tags": [], "name": "n", "config": {}}
        run.start("offline", **names, run_id="one", folder=tmp_path)
        assert run.mode == "offline"
        return run

    return start


def test_a_record_goes_to_both(started: Started, tmp_path: Path) -> None:
    fake = FakeWandb()
    path = tmp_path / "metrics.jsonl"
    with Tracker(MetricsLog(path), started(fake)) as tracker:
        tracker.log({"recover/loss": 3.0}, step=1, tokens=64, round=2)
        tracker.summary({"parameters": 10})

    assert fake.rows == [{"recover/loss": 3.0, "step": 1, "tokens": 64, "prune/round": 2}]
    assert fake.summary == {"parameters": 10}
    assert fake.exit_codes == [0]
    assert read_metrics(path)[0].items() >= {"step": 1, "tokens": 64, "round": 2}.items()


def test_a_failing_wandb_is_one_warning_and_the_log_goes_on(
    started: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb(fails_at_row=2)
    run = started(fake)
    path = tmp_path / "metrics.jsonl"
    with caplog.at_level(logging.WARNING), Tracker(MetricsLog(path), run) as tracker:
        for step in range(10):
            tracker.log({"recover/loss": 3.0}, step=step, tokens=step, round=1)

    assert len(read_metrics(path)) == 10
    assert len(fake.rows) == 2
    assert run.mode == "disabled"
    (warning,) = caplog.messages
    assert "ConnectionResetError: Connection lost" in warning
    assert "\n" not in warning


def test_an_exception_ends_with_exit_code_1(started: Started, tmp_path: Path) -> None:
    fake = FakeWandb()
    with pytest.raises(KeyError), Tracker(MetricsLog(tmp_path / "log"), started(fake)) as tracker:
        raise KeyError
    tracker.finish(0)  # a second time: no harm, no second exit code
    assert fake.exit_codes == [1]


def test_other_ranks_do_nothing() -> None:
    with Tracker(None, None) as tracker:
        tracker.log({"recover/loss": 3.0}, step=1, tokens=1, round=1)
        tracker.summary({"parameters": 1})
        tracker.truncate(tracker.position())
    assert tracker.position() == 0


def test_a_restarted_stage_forgets_its_unfinished_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = Tracker(MetricsLog(path), None)
    tracker.log({"recover/loss": 3.0}, step=1, tokens=1, round=1)
    position = tracker.position()
    tracker.log({"recover/loss": 2.0}, step=2, tokens=2, round=1)
    tracker.truncate(position)
    assert [record["step"] for record in read_metrics(path)] == [1]


def test_an_installation_that_fails_in_its_own_way_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(environ: object) -> str:
        raise TypeError("Descriptors cannot be created directly")

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_run, "server_url", broken)
    run = WandbRun()
    names: dict[str, Any] = {"project": "p", "entity": None, "group": None, "tags": [], "name": "n", "config": {}}
    with caplog.at_level(logging.WARNING):
        run.start("auto", **names, run_id="one", folder=tmp_path)
    assert run.mode == "disabled"
    assert caplog.messages == ["W&B cannot start: TypeError: Descriptors cannot be created directly"]


@pytest.mark.parametrize("name", ["llama2+obs-export", "modèle-export", "half.2_b-export"])
def test_every_name_of_a_run_names_an_artifact(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    artifact = wandb_run.model_by_reference(name, tmp_path, {"parameters": 3})
    assert artifact.name == re.sub("[è+]", "_", name)
    assert [*artifact.manifest.entries] == ["config.json"]
