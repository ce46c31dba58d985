"""Killed between or inside stages and started again: finished stages stay, the end is the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.commands import ENOUGH, Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, record_of, recovery_steps, start, wait_until
from transact.runs.metrics import read_metrics


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def kill_after_stage(overrides: list[str], folder: Path, stage: str) -> None:
    """Start the job and kill -9 everything once run.json lists the stage."""
    process = start(overrides, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: stage in record_of(folder).get("stages", {}), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_at_checkpoint(overrides: list[str], folder: Path, round_name: str) -> None:
    """Start the job and kill -9 everything once the recovery of this round has saved."""
    process = start(overrides, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(each.name.startswith(round_name) for each in checkpoints(folder)), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_finished_stages_are_not_repeated_and_the_result_is_the_same(
    workplace: Workplace, chain_runs: Mapping[int, Path]
) -> None:
    folder = workplace.folder / "killed"
    overrides = [*workplace.overrides("killed"), ENOUGH]
    kill_after_stage(overrides, folder, "round_01/slice")
    first = read(folder / "run.json")["stages"]
    kill_after_stage(overrides, folder, "round_01/recover")
    kill_at_checkpoint([*overrides, "engine.checkpoint_every.tokens=1024"], folder, "round_02")
    again = transact(overrides)
    assert again.returncode == 0, again.stderr
    assert "goes on from checkpoint round_02_step_" in again.stdout

    record = read(folder / "run.json")
    assert record["restarts"] == 3
    assert sorted(record["starts"]) == record["starts"] and len(record["starts"]) == 4  # the report marks them
    assert record["state"] == "done"
    for stage, entry in first.items():
        now = record["stages"][stage]
        assert now | {"files": now["files"] | now.pop("removed", {})} == entry, f"{stage} was done again"
    assert_same_export(folder, chain_runs[1])
    assert recovery_steps(folder) == list(range(1, 33))
    assert not list(folder.rglob("*.tmp"))

    # A finished run is recognised, and another configuration in its folder is refused with the difference.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    other = transact([*overrides, "recover.learning_rate=1e-4"])
    assert other.returncode == 2
    assert "recover.learning_rate: 0.002 -> 0.0001" in other.stderr
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_tokens_may_move_but_another_text_is_refused(workplace: Workplace) -> None:
    """The store has another path, then the text has another content, then it is tokenised anew with the old one."""
    folder, text = workplace.folder / "moved_tokens", workplace.folder / "moving.txt"
    text.write_text(workplace.train.read_text())
    stores = [workplace.folder / f"moving_tokens_{number}" for number in range(3)]
    small = ["prune.rounds=1", "recover.tokens=4096", "eval.efficiency.measured=false", f"data.train.files=[{text}]"]
    overrides = [*workplace.overrides(folder.name), *small]
    kill_after_stage([*overrides, f"data.token_store={stores[0]}"], folder, "round_01/calibrate")
    begun = read(folder / "run.json")["texts"]

    sound = text.read_text()
    text.write_text(sound.replace("import", "export"))
    os.rename(stores[0], stores[1])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = transact([*overrides, f"data.token_store={stores[1]}"])
    assert refused.returncode == 2, refused.stderr
    assert "data.train: the text is another one than this run began with" in refused.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    text.write_text(sound)
    kill_after_stage([*overrides, f"data.token_store={stores[1]}"], folder, "round_01/select")
    assert len(list(stores[1].glob("*/index.json"))) == 4  # one of each text, and one more of the file of another time
    os.rename(stores[1], stores[2])
    ended = transact([*overrides, f"data.token_store={stores[2]}"])
    assert ended.returncode == 0, ended.stderr
    assert "tokenise" not in ended.stdout + ended.stderr
    after = read(folder / "run.json")["texts"]
    assert {name: each["sha256"] for name, each in after.items()} == {
        name: each["sha256"] for name, each in begun.items()
    }


def test_a_model_that_a_later_round_superseded_is_made_again_where_it_is_needed(
    chain_runs: Mapping[int, Path], tmp_path: Path
) -> None:
    """All model folders of the last round are damaged, those of the first one were removed: the end is the same."""
    place, folder = chain_runs[1].parent, tmp_path / "run"
    workplace = Workplace(place, place / "model", place / "text" / "train.txt", place / "text" / "heldout.txt")
    store = f"data.token_store={tmp_path}/tokens"
    shutil.copytree(chain_runs[1], folder)
    assert not (folder / "round_01" / "sliced").exists() and not (folder / "round_01" / "recovered").exists()
    (folder / "export" / "model.safetensors").unlink()
    for name in ("sliced", "recovered"):
        next((folder / "round_02" / name).glob("*.safetensors")).unlink()
    again = transact([*workplace.overrides("ranks_1"), ENOUGH, store, f"output_dir={folder}"])
    assert again.returncode == 0, again.stdout + again.stderr
    for stage in ("round_01/recover", "round_01/slice"):
        assert f"{stage}: its model folder was removed (keep_rounds=last) and is needed again" in again.stdout
    assert_same_export(folder, chain_runs[1])
    assert not (folder / "round_01" / "recovered").exists()


def test_a_recovery_that_comes_out_other_when_it_is_made_again(workplace: Workplace) -> None:
    """Other ranks repair the first round while the second has checkpoints: these are of a model that is no more."""
    folder, often = workplace.folder / "came_out_other", "engine.checkpoint_every.tokens=1024"
    overrides = [*workplace.overrides(folder.name), ENOUGH, "keep_rounds=all", often]
    kill_at_checkpoint(overrides, folder, "round_02")
    old = [path.name for path in checkpoints(folder)]
    first = [row for row in read_metrics(folder / "metrics.jsonl") if "eval/perplexity_dense" in row]
    for name in ("round_01/recovered", "round_02/sliced"):
        next((folder / name).glob("*.safetensors")).unlink()
    again = transact(overrides, ranks=2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "round_01/recover: came out other than before" in again.stdout
    assert "goes on from checkpoint round_01_step_" in again.stdout  # those of the repair are not lost to those of old
    for name in old:
        assert f"checkpoint {name} is of a training that began with another model" in again.stdout
    assert "goes on from checkpoint round_02" not in again.stdout
    metrics = read_metrics(folder / "metrics.jsonl")
    assert [row for row in metrics if "eval/perplexity_dense" in row] == first  # and so is what was measured before
    assert recovery_steps(folder)[-16:] == list(range(17, 33))
    assert not checkpoints(folder) and record_of(folder)["state"] == "done"
