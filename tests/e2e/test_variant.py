"""A cut is recovered once more beside the first result: what is the same is taken over, the end is a fresh run's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.commands import Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, recovery_steps, start, wait_until
from transact.launch.status import statuses
from transact.runs.run_folder import run_folders
from transact.tracking.report.run_files import read_run
from transact.tracking.report.writing import write_pages

TOKENS_PER_STEP = 8 * 64
OTHER = [f"recover.tokens={24 * TOKENS_PER_STEP}", "recover.learning_rate=1e-3", "recover.min_warmup_steps=2"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def overrides(workplace: Workplace, name: str) -> list[str]:
    small = [f"recover.tokens={16 * TOKENS_PER_STEP}", "eval.efficiency.measured=false", "keep_rounds=all"]
    return [*workplace.overrides(name), *small]


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> Path:
    ended = transact(overrides(workplace, "recovered_once"))
    assert ended.returncode == 0, ended.stderr
    return workplace.folder / "recovered_once"


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file of the run itself but its page, which lists its variants."""
    files = (path for path in folder.rglob("*") if path.is_file() and "variants" not in path.parts)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.name != "report.html"}


def killed_in_recovery(arguments: list[str], folder: Path) -> None:
    process = start(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: checkpoints(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_variant_that_is_killed_ends_like_a_fresh_run(workplace: Workplace, first: Path) -> None:
    """Other tokens, rate and warm-up; killed in its recovery and gone on with. Nothing of the first run changes."""
    before = state_of(first)
    variant = first / "variants" / "slow"
    arguments = [*overrides(workplace, first.name), *OTHER, "recover.variant=slow"]
    arguments.append(f"engine.checkpoint_every.tokens={2 * TOKENS_PER_STEP}")
    killed_in_recovery(arguments, variant)
    ended = transact(arguments)
    assert ended.returncode == 0, ended.stderr
    assert "goes on from checkpoint" in ended.stdout

    fresh = transact([*overrides(workplace, "recovered_fresh"), *OTHER])
    assert fresh.returncode == 0, fresh.stderr
    assert_same_export(variant, workplace.folder / "recovered_fresh")
    results = [read(folder / "result.json") for folder in (variant, workplace.folder / "recovered_fresh")]
    for one, other in zip(*(each["rounds"] for each in results), strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}
    assert results[0]["dense"] == results[1]["dense"] and results[0]["pruned"] == results[1]["pruned"]
    assert recovery_steps(variant) == recovery_steps(workplace.folder / "recovered_fresh")

    record, own = read(variant / "run.json"), read(first / "run.json")
    taken = ["round_00/evaluate", "round_01/calibrate", "round_01/select", "round_01/slice"]
    assert record["cut"]["stages"] == taken
    assert all(record["stages"][name] == own["stages"][name] for name in taken)  # at the time of the first run
    assert "round_01/gram" not in record["stages"]
    assert before.keys() == state_of(first).keys() and before == state_of(first)
    assert load_file(first / "export" / "model.safetensors")

    write_pages(first)
    page = (first / "report.html").read_text()
    assert "Recoveries of this cut" in page and "variants/slow/report.html" in page
    assert [each.path.name for each in read_run(first).variants] == ["slow"]
    shown = statuses(run_folders(first))
    assert [(each.name, each.state) for each in shown] == [
        (first.name, "done"),
        (f"{first.name}/variants/slow", "done"),
    ]


def test_the_rounds_before_the_one_that_changes_are_kept_with_their_recovery(workplace: Workplace, first: Path) -> None:
    """Two ranks recover what one rank has cut."""
    arguments = [*overrides(workplace, first.name), "recover.learning_rates=[2e-3,1e-3]", "recover.variant=last"]
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert "variant last: takes over round_00/evaluate, " in ended.stdout
    variant, own = read(first / "variants" / "last" / "run.json"), read(first / "run.json")
    assert variant["cut"]["stages"][-1] == "round_02/slice"
    assert variant["stages"]["round_01/recover"] == own["stages"]["round_01/recover"]
    assert variant["stages"]["round_02/recover"] != own["stages"]["round_02/recover"]
    assert read(first / "variants" / "last" / "result.json")["rounds"][1]["learning_rate"] == 1e-3


def test_the_parent_of_a_variant_is_that_of_its_cut(workplace: Workplace, first: Path) -> None:
    """Distilled from other weights, the result would not be what its record says."""
    shard = sorted(workplace.model.glob("*.safetensors"))[0]
    whole, weights = shard.read_bytes(), load_file(shard)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, shard, {"format": "pt"})
    try:
        ended = transact([*overrides(workplace, first.name), *OTHER, "recover.variant=other"])
    finally:
        shard.write_bytes(whole)
    assert ended.returncode == 2, ended.stderr
    assert "is not the model that the run in" in ended.stderr and ended.stderr.count("\n") == 1
    assert not (first / "variants" / "other").exists()


@pytest.mark.parametrize("setting", ["data.evaluation", "data.train", "data.evaluation, shorter"])
def test_the_texts_of_a_variant_are_those_of_its_cut(workplace: Workplace, first: Path, setting: str) -> None:
    """The dense model's figures are taken over: beside them stand those of the same text, or none."""
    setting, _, shorter = setting.partition(", ")
    path = {"data.evaluation": workplace.heldout, "data.train": workplace.train}[setting]
    text = path.read_text()
    path.write_text(text[:1500] if shorter else text.replace("import", "export"))
    before = state_of(first)
    try:
        ended = transact([*overrides(workplace, first.name), "recover.learning_rate=1e-3", "recover.variant=text"])
    finally:
        path.write_text(text)
    assert ended.returncode == 2, ended.stderr
    assert f"{setting}: the text is another one than the run of the cut began with" in ended.stderr
    assert ended.stderr.count("error:") == 1 and not (first / "variants" / "text").exists()
    assert state_of(first) == before


def test_a_damaged_cut_is_not_taken_over(workplace: Workplace, first: Path) -> None:
    statistics = first / "round_01" / "statistics.safetensors"
    whole = statistics.read_bytes()
    statistics.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        ended = transact([*overrides(workplace, first.name), *OTHER, "recover.variant=damaged"])
    finally:
        statistics.write_bytes(whole)
    assert ended.returncode == 2
    assert "statistics.safetensors' of round_01/calibrate" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (first / "variants" / "damaged" / "export").exists()


def test_a_sweep_has_no_variants(workplace: Workplace, first: Path) -> None:
    ended = transact(["-m", *overrides(workplace, first.name), "recover.variant=x", "recover.learning_rate=1e-3,1e-4"])
    assert ended.returncode == 2
    assert "recover.variant='x' is not allowed: one at a time" in ended.stderr
