"""A run goes on while a variant takes its cut over: models that it removes in between are missed in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_variant import PARENT, ROUNDS, composed, written
from transact.config.run import RunConfig
from transact.files import copy_finished, damage_of, file_digest, read_json, write_json, write_text
from transact.models.identity import UnusableModel
from transact.rounds import outline
from transact.runs.run_folder import RunFolder
from transact.stages import variant
from transact.stages.variant import checked_cut, take_over

FILES = ("one.safetensors", "two.safetensors")


def at_work(folder: Path) -> RunFolder:
    """A run whose rounds are all recovered, with files of every sliced and recovered model."""
    written(folder, *ROUNDS)
    write_text(folder / "metrics.jsonl", "")
    record = read_json(folder / "run.json")
    for name, entry in record["stages"].items():
        round_name, _, kind = name.partition("/")
        made = {"slice": "sliced", "recover": "recovered"}.get(kind)
        paths = [folder / round_name / made / file for file in FILES] if made else []
        for path in paths:
            write_text(path, name)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
            for path in paths
        }
        record["stages"][name] = {**entry, "files": files}
    write_json(folder / "run.json", record)
    run = RunFolder(folder)
    run.open(1)
    return run


def removes_before(call: int, run: RunFolder, number: int, work: Any) -> Any:
    """The same function, and before its call of this number the run removes the models of a round, as it does."""
    calls = iter(range(call + 1))

    def with_removal(*arguments: Any) -> Any:
        if next(calls, None) == call:
            run.supersede(run.path / f"round_0{number}/sliced", run.path / f"round_0{number}/recovered")
        return work(*arguments)

    return with_removal


def taken(config: RunConfig) -> list[str]:
    asked = outline(config, PARENT)
    cut = checked_cut(config, asked)
    folder = RunFolder(Path(config.output_dir))
    folder.path.mkdir(parents=True)
    folder.open(1)
    take_over(folder, config, asked, cut)
    there = (path.relative_to(folder.path) for path in folder.path.rglob("*.safetensors"))
    recorded = {name: file for entry in folder.stages.values() for name, file in entry["files"].items()}
    assert all(damage_of(folder.path / name, file) is None for name, file in recorded.items())
    assert sorted(map(str, there)) == sorted(recorded)
    return sorted(recorded)


@pytest.mark.parametrize("during", ["damage_of", "copy_finished"])
@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_an_earlier_rounds_models_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, call: int
) -> None:
    """The last round is recovered again, which reads its own cut alone."""
    run = at_work(tmp_path)
    work = {"damage_of": damage_of, "copy_finished": copy_finished}[during]
    monkeypatch.setattr(variant, during, removes_before(call, run, 1, work))
    last = "recover.learning_rates=[1e-3,1e-3,1e-4]"
    found = taken(composed(tmp_path, *ROUNDS, last, variant="v"))
    assert {name.split("/")[0] for name in found} - {"round_01"} == {"round_02", "round_03"}


@pytest.mark.parametrize("during", ["damage_of", "copy_finished"])
@pytest.mark.parametrize("call", [0, 1])
def test_a_model_that_is_removed_meanwhile_is_missed_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, call: int
) -> None:
    run = at_work(tmp_path)
    work = {"damage_of": damage_of, "copy_finished": copy_finished}[during]
    monkeypatch.setattr(variant, during, removes_before(call, run, 1, work))
    kind = ValueError if during == "damage_of" else UnusableModel  # before and after the run folder is made
    with pytest.raises(kind, match=r"round_01/slice, which .* has removed \(keep_rounds=last\)"):
        taken(composed(tmp_path, *ROUNDS, "recover.learning_rate=1e-4", variant="v"))
    assert (tmp_path / "variants").exists() == (during == "copy_finished")


def test_a_file_that_is_gone_though_its_run_kept_it_is_named(tmp_path: Path) -> None:
    at_work(tmp_path)
    (tmp_path / "round_01/sliced" / FILES[1]).unlink()
    with pytest.raises(ValueError, match=r"two\.safetensors' of round_01/slice is missing: the command of that run"):
        taken(composed(tmp_path, *ROUNDS, "recover.learning_rate=1e-4", variant="v"))
