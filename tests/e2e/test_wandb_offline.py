"""Real wandb without a network: what was logged is read back from its own file."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.e2e.conftest import OF_WANDB
from tests.support.wandb_files import records, series, wait_until_written
from transact.runs.metrics import MetricsLog, read_metrics
from transact.tracking import wandb_run
from transact.tracking.tracker import Tracker
from transact.tracking.wandb_names import fill_from_environment
from transact.tracking.wandb_run import WandbRun

FAKE_KEY = "f00d" * 10
SECRET = "hf_thisIsNobodysBusiness"
HIDDEN_SIZES = {1: 160, 2: 128}
PERPLEXITIES = {1: (80.5, 30.25), 2: (64.5, 33.75)}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def isolated_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No real key, no home folder: the machine that runs the tests may have both."""
    for name in ("WANDB_DATA_DIR", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", SECRET)


def start(folder: Path, mode: str = "offline", run_id: str = "tinyrun1") -> WandbRun:
    run = WandbRun()
    run.start(
        mode,
        project="transact",
        entity=None,
        group="sweep",
        tags=["tiny"],
        name="tiny-50",
        run_id=run_id,
        config={"prune": {"remove_fraction": 0.5}},
        folder=folder,
    )
    return run


def log_two_rounds(tracker: Tracker) -> None:
    tokens = 0
    for number in (1, 2):
        sliced, recovered = PERPLEXITIES[number]
        cut = {"prune/hidden_size": HIDDEN_SIZES[number], "eval/perplexity_sliced": sliced}
        tracker.log(cut, step=0, tokens=tokens, round=number)
        for step in (1, 2, 3):
            tokens += 1000
            figures = {"recover/loss": 4.0 - tokens / 4000, "perf/tokens_per_s": 8400.0}
            tracker.log(figures, step=step, tokens=tokens, round=number)
        evaluation = {"eval/perplexity_recovered": recovered}
        tracker.log(evaluation, step=3, tokens=tokens, round=number)


def test_tables_alerts_and_the_model_reach_wandb(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes(b"weights" * 1000)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with Tracker(log, start(tmp_path)) as tracker:
        tracker.log_table("prune/rounds", ["round", "head_dim"], [[0, 32], [1, 16]], tokens=5, round=1)
        tracker.alert("loss spike", "loss 5.00 after 3.00", step=3, tokens=300, round=1)
        tracker.log_model("tiny-export", export, {"parameters": 10})
    (folder,) = offline_folders(tmp_path)

    logged = {name: value for record in records(folder, "history") for name, value in record["item"].items()}
    assert logged["prune/rounds.nrows"] == 2
    staged = [content["local_path"] for each in records(folder, "artifact") for content in contents(each)]
    assert all(Path(path).is_relative_to(tmp_path / "wandb") for path in staged if path)
    (alert,) = records(folder, "alert")
    assert (alert["title"], alert["text"]) == ("loss spike", "loss 5.00 after 3.00")
    assert read_metrics(log.path)[0].items() >= {"alert": "loss spike", "step": 3, "tokens": 300, "round": 1}.items()
    models = [each for each in records(folder, "artifact") if each["type"] == "model"]
    assert [each["name"] for each in models] == ["tiny-export"]
    assert contents(models[0])[0]["ref"] == (export / "model.safetensors").as_uri()
    copies = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and path.stat().st_size == 7000]
    assert copies == []


def contents(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"local_path": None} | each for each in artifact["manifest"]["contents"]]


def offline_folders(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    with Tracker(MetricsLog(tmp_path / "metrics.jsonl"), start(tmp_path)) as tracker:
        log_two_rounds(tracker)
        tracker.summary({"parameters": 1_288_704})
    (folder,) = offline_folders(tmp_path)
    return folder


def test_two_rounds_read_back(finished_run: Path) -> None:
    rows = [record["item"] for record in records(finished_run, "history")]

    assert series(rows, "prune/round", "prune/hidden_size") == list(HIDDEN_SIZES.items())
    assert series(rows, "prune/round", "eval/perplexity_sliced") == [(1, 80.5), (2, 64.5)]
    assert series(rows, "prune/round", "eval/perplexity_recovered") == [(1, 30.25), (2, 33.75)]
    losses = [(1000 * count, 4.0 - count / 4) for count in range(1, 7)]
    assert series(rows, "tokens", "recover/loss") == losses
    assert [row["prune/round"] for row in rows] == [1] * 5 + [2] * 5

    mirrored = read_metrics(finished_run.parents[1] / "metrics.jsonl")
    assert series(mirrored, "tokens", "recover/loss") == losses


def test_each_figure_has_its_axis(finished_run: Path) -> None:
    metrics = records(finished_run, "metric")
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {
        "recover/*": "tokens",
        "perf/*": "tokens",
        "mem/*": "tokens",
        "data/*": "tokens",
        "prune/*": "prune/round",
        "eval/*": "prune/round",
        "calibrate/*": "prune/round",
    }


def test_the_run_is_described_and_finished(finished_run: Path) -> None:
    run = records(finished_run, "run")[0]
    assert (run["run_id"], run["display_name"], run["run_group"]) == (
        "tinyrun1",
        "tiny-50",
        "sweep",
    )
    assert run["config"]["update"]["prune"] == {"remove_fraction": 0.5}
    assert {"parameters": 1_288_704} in [item["update"] for item in records(finished_run, "summary")]
    assert records(finished_run, "exit") == [{"exit_code": 0}]


def test_a_restart_adds_a_folder_with_the_same_id(tmp_path: Path) -> None:
    for loss in (3.0, 2.0):
        with Tracker(None, start(tmp_path)) as tracker:
            tracker.log({"recover/loss": loss}, step=1, tokens=10, round=1)

    first, second = offline_folders(tmp_path)
    for folder in (first, second):
        run = records(folder, "run")[0]
        assert run["run_id"] == "tinyrun1"
        assert run["resume"] is True
    assert records(first, "history")[0]["item"]["recover/loss"] == 3.0
    assert records(second, "history")[0]["item"]["recover/loss"] == 2.0


def test_no_secret_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setattr(sys, "argv", ["run.py", f"token={SECRET}"])
    with Tracker(MetricsLog(tmp_path / "metrics.jsonl"), start(tmp_path)) as tracker:
        log_two_rounds(tracker)

    (folder,) = offline_folders(tmp_path)
    transaction_log = wait_until_written(folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert b"remove_fraction" in transaction_log.read_bytes()  # plain bytes: a search finds things
    for path in files:
        contents = path.read_bytes()
        assert SECRET.encode() not in contents, path
        assert FAKE_KEY.encode() not in contents, path
        assert path.name not in ("requirements.txt", "wandb-metadata.json", "diff.patch")


@pytest.mark.parametrize("mode", ["online", "auto"])
@pytest.mark.parametrize("answers", ["refused", "silent"])
def test_without_an_answer_of_the_server_the_run_is_offline(
    mode: str, answers: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connects, and never says a word
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", NOWHERE if answers == "refused" else silent)
        began = monotonic()
        run = start(tmp_path, mode)
        assert monotonic() - began < 60  # on a loaded machine; wandb has a second to connect
    assert run.mode == "offline"
    run.log({"recover/loss": 3.0, "tokens": 1, "prune/round": 1})
    run.finish(0)

    (folder,) = offline_folders(tmp_path)
    assert records(folder, "history")[0]["item"]["recover/loss"] == 3.0
    (warning,) = [entry.message for entry in caplog.records if entry.levelno == logging.WARNING]
    assert warning.startswith("W&B cannot start online")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:port", "http://", "http://["])
@pytest.mark.parametrize("key", ["", FAKE_KEY])
def test_an_address_that_is_none_turns_tracking_off(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    with Tracker(MetricsLog(tmp_path / "metrics.jsonl"), start(tmp_path, "auto")) as tracker:
        log_two_rounds(tracker)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10


def test_an_impossible_run_id_turns_tracking_off(tmp_path: Path) -> None:
    run = start(tmp_path, run_id="no/slashes:allowed")
    assert run.mode == "disabled"
    with Tracker(MetricsLog(tmp_path / "metrics.jsonl"), run) as tracker:
        log_two_rounds(tracker)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10


KILLED_PROGRAM = """
import sys, time
from transact.tracking.wandb_run import WandbRun
run = WandbRun()
names = {"project": "p", "entity": None, "group": None, "tags": [], "name": "n"}
run.start("offline", **names, run_id="killed", config={}, folder=sys.argv[1])
run.log({"recover/loss": 3.0, "tokens": 1, "prune/round": 1})
print("logged", flush=True)
time.sleep(60)
"""


def test_a_killed_process_loses_two_seconds_at_most(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        sleep(3.0)
        os.killpg(process.pid, signal.SIGKILL)  # wandb's service process with it

    (folder,) = offline_folders(tmp_path)
    assert records(folder, "history")[0]["item"]["recover/loss"] == 3.0
    assert records(folder, "exit") == []


def test_variables_of_the_environment_count_where_the_configuration_says_nothing(
    chain_runs: Mapping[int, Path],
) -> None:
    """Of a whole run, whose ranks were started by launch=local."""
    (folder,) = offline_folders(chain_runs[2])
    (run, *_) = records(folder, "run")
    assert (run["project"], run["display_name"], run["run_group"]) == (
        OF_WANDB["WANDB_PROJECT"],
        OF_WANDB["WANDB_NAME"],
        OF_WANDB["WANDB_RUN_GROUP"],
    )
    assert run["notes"] == "noted there"
    assert {"tagged", "there", "prune"} <= set(run["tags"])
    track = yaml.safe_load((chain_runs[2] / "config.yaml").read_text())["track"]
    assert (track["project"], track["run_name"], track["group"], track["notes"], track["tags"]) == (
        "of-the-environment",
        "named there",
        "grouped there",
        "noted there",
        ["tagged", "there"],
    )


def test_the_configuration_wins_over_the_environment() -> None:
    track = OmegaConf.create({"project": "ours", "tags": ["a"], "group": None, "notes": None})
    fill_from_environment(track, OF_WANDB | {"WANDB_NOTES": " "})
    assert dict(track) == {
        "project": "ours",
        "tags": ["a"],
        "group": "grouped there",
        "run_name": "named there",
        "notes": None,
    }
    empty = OmegaConf.create({"project": None})
    fill_from_environment(empty, {})
    assert dict(empty) == {"project": "transact"}
    with pytest.raises(ValueError, match="the environment's WANDB_PROJECT: track"):
        fill_from_environment(OmegaConf.create({"project": None}), {"WANDB_PROJECT": "a/b"})
