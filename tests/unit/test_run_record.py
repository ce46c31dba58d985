"""Whose a folder is: nothing of a user's is overwritten, removed or followed, and records are read with suspicion."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transact.distributed import slurm
from transact.files import DamagedFile, fresh_temporary_folder, publish, read_json, write_json, write_text
from transact.launch.status import main as status_main
from transact.rounds import round_name
from transact.runs.run_folder import RunFolder
from transact.runs.run_record import (
    LAYOUT,
    check_metrics,
    check_run_folder,
    claim_run,
    is_unclaimed,
    read_config,
    read_record,
)
from transact.tracking.report.command import main as report_main

STAGES = ("round_01/slice", "round_01/recover", "export")
OUTPUTS = {"round_01/slice": "round_01/sliced", "round_01/recover": "round_01/recovered", "export": "export"}
FILES = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "README.md")


def make(folder: Path, content: str, files: tuple[str, ...] = FILES) -> None:
    """As stages do: beside it first, then under its name."""
    temporary = fresh_temporary_folder(folder)
    for name in files:
        write_text(temporary / name, content + name)
    publish(temporary, folder)


def start(folder: Path, content: str = "weights", killed_in: str | None = None) -> RunFolder:
    """A run of three stages with real files, as far as `killed_in`, whose output is written in part."""
    check_run_folder(str(folder), None)
    claim_run(folder, None, "starting")
    run = RunFolder(folder)
    run.open(1)
    write_text(folder / "config.yaml", "recover:\n  tokens: 10\n")
    for stage in STAGES:
        output = folder / OUTPUTS[stage]
        if run.is_finished(stage):
            continue
        run.begin(stage, [output], [folder / "checkpoints"] if stage.endswith("recover") else [])
        output.parent.mkdir(exist_ok=True)
        if stage.endswith("recover"):
            for name in ("state-00000-of-00001.safetensors", "manifest.json"):
                write_text(folder / "checkpoints" / "round_01_step_00000004" / name, content)
        if stage == killed_in:
            write_text(fresh_temporary_folder(output) / FILES[1], "half")
            return run
        make(output, content)
        run.finish(stage, [output], 1.0, 0, {})
        run.remove_checkpoints("round_01")
    run.announce(folder / "result.json")
    write_json(folder / "result.json", {})
    run.end("done")
    return run


def contents(folder: Path) -> dict[str, bytes | str]:
    """Of every file and link below it, no link followed."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


WORDS = (
    "notes.txt",
    "x.tmp",
    "mine",
    "data.tmp",
    "a b",
    "sliced.old",
    "export.bak",
    "checkpoint",
    "model.bin",
    "ü.txt",
)
OURS = ("export", "checkpoints", "round_01", "gguf", "result.json", "comparison.json")
PLACES = ("", "round_01", "round_01/sliced", "round_01/recovered", "export", "checkpoints", "logs", "round_07")
trees = st.dictionaries(
    st.lists(st.sampled_from((*WORDS, *OURS)), min_size=1, max_size=3).map("/".join), st.binary(max_size=20), max_size=6
)
dropped = st.dictionaries(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(WORDS)).map(lambda parts: "/".join(filter(None, parts))),
    st.binary(max_size=20),
    max_size=6,
)


def plant(folder: Path, tree: dict[str, bytes]) -> dict[str, bytes]:
    """Write a user's files, as far as one is not in the way of another. Returns what was written."""
    planted = {}
    for name, content in tree.items():
        path = folder / name
        if path.exists() or any(each.is_file() for each in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        planted[name] = content
    return planted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees.filter(bool))
def test_a_folder_with_anything_of_somebodys_is_refused_and_nothing_changes(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    plant(folder, tree)
    before = contents(folder)
    with pytest.raises(ValueError, match="holds no run of transact"):
        check_run_folder(str(folder), None)
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        claim_run(folder, None, "starting")
    assert contents(folder) == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=dropped, killed_in=st.sampled_from(STAGES), damaged=st.sampled_from((None, *STAGES)))
def test_what_is_dropped_into_a_run_folder_survives_everything(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], killed_in: str, damaged: str | None
) -> None:
    """Killed, started again, a finished stage of it done again: every byte of the user's is there, and of the run's
    nothing is left over."""
    folder = tmp_path_factory.mktemp("run") / "run"
    start(folder, killed_in=killed_in)
    planted = plant(folder, tree)
    is_in_the_way = False
    try:
        run = start(folder)
        if damaged is not None:
            run.mark_damaged(damaged, "a flipped bit")
            run = start(folder)
    except ValueError as error:
        is_in_the_way = "was not made by this run" in str(error) or "did not make" in str(error)
        if not is_in_the_way:
            raise
    if not is_in_the_way:
        ours = {f"{output}/{name}" for output in OUTPUTS.values() for name in FILES}
        left = contents(folder).keys() - planted.keys()
        assert left == ours | {"run.json", "config.yaml", "result.json"}
        for output in OUTPUTS.values():
            assert set(read_record(folder)["stages"]) == set(STAGES)  # type: ignore[index]
            assert (folder / output / FILES[0]).read_text() == "weights" + FILES[0]
        recorded = {name for entry in run.stages.values() for name in entry["files"]}
        assert recorded == ours, "nothing of a user's is taken for the run's"
    assert {name: (folder / name).read_bytes() for name in planted} == planted


@pytest.mark.parametrize("name", ["export", "checkpoints", "round_01", "logs", "run.lock", "metrics.jsonl", "stacks"])
def test_no_link_is_followed(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    start(run, killed_in="round_01/slice")
    (elsewhere / "sliced.tmp").mkdir(parents=True)
    (elsewhere / "sliced.tmp" / "model.safetensors").write_text("mine")
    if (run / name).is_dir():
        (run / name).rename(tmp_path / "moved")
    (run / name).symlink_to(elsewhere)
    before = contents(elsewhere)
    with pytest.raises(ValueError, match=f"'{name}' in it is a link"):
        check_run_folder(str(run), None)
    RunFolder(run).open(1)  # the leftovers of the killed attempt are behind the link now
    assert contents(elsewhere) == before


@pytest.mark.parametrize(
    ("killed_in", "place", "name"),
    [
        ("round_01/slice", "round_01/sliced.tmp", "README.md"),
        ("round_01/slice", "round_01/sliced.tmp", "manifest.json"),
        ("round_01/recover", "round_01/recovered.tmp", "LICENSE"),
        ("round_01/recover", "checkpoints/round_01_step_00000004", "config.json"),
        ("round_01/recover", "checkpoints/round_01_step_00000004", "README.md"),
        ("export", "export.tmp", "layer_00001.safetensors"),
        ("export", "export.tmp", "vocabulary.json.tmp"),
    ],
)
def test_what_no_writer_of_a_folder_makes_is_somebodys(tmp_path: Path, killed_in: str, place: str, name: str) -> None:
    """Put into the folder of an attempt that was killed, under a name that a run has in other folders."""
    start(tmp_path, killed_in=killed_in)
    theirs = tmp_path / place / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_bytes(b"mine")
    if place.endswith(".tmp"):
        with pytest.raises(ValueError, match="did not make: move them away"):
            start(tmp_path)
    else:
        start(tmp_path)
    assert theirs.read_bytes() == b"mine"


def test_a_link_in_place_of_an_output_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / FILES[1]).write_text("mine")
    for name in (*FILES,):
        (run.path / "round_01" / "sliced" / name).unlink()
    (run.path / "round_01" / "sliced").rmdir()
    (run.path / "round_01" / "sliced").symlink_to(tmp_path / "moved")
    run.mark_damaged("round_01/slice", "another SHA-256")
    start(run.path)
    assert (run.path / "round_01" / "sliced").is_dir() and not (run.path / "round_01" / "sliced").is_symlink()
    assert contents(tmp_path / "moved") == {FILES[1]: b"mine"}


def test_a_stage_done_again_with_another_outcome_takes_along_those_that_read_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.open(1)
    for name, reads in (("a", []), ("b", ["a"]), ("c", [])):
        run.begin(name, [tmp_path / name])
        write_text(tmp_path / name, name)
        assert run.finish(name, [tmp_path / name], 1.0, 5, {}, reads=reads)
    before = dict(run.stages["a"])
    for content, counts, left in (("a", True, ["a", "b", "c"]), ("other", False, [])):
        run.mark_damaged("a", "a flipped bit")
        assert not run.is_finished("a") and run.begin("a", [tmp_path / "a"])
        write_text(tmp_path / "a", content)
        assert run.finish("a", [tmp_path / "a"], 9.0, 99, {}) is counts
        assert list(run.stages) == left
        if counts:
            assert {**run.stages["a"], "reads": []} == before


def _folder_of(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _other_layout(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": LAYOUT + 1}))


RECORD_DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2].rstrip(b"}\n")),
    "zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a folder": _folder_of,
    "a loop of links": _link_loop,
}
RECORDS = {
    "run.json": {"another layout": _other_layout, "of somebody": lambda path: path.write_text('{"loss": 1.0}')},
    "job.json": {
        "another layout": _other_layout,
        "no number": lambda path: path.write_text(f'{{"layout": {LAYOUT}, "job": 7}}'),
    },
    "config.yaml": {"no YAML": lambda path: path.write_text("recover: [")},
}
CASES = [(name, damage) for name, more in RECORDS.items() for damage in (*RECORD_DAMAGES, *more)]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_record_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", (0.0,))  # with a SLURM that is not there
    run = start(tmp_path / "run").path
    write_json(run / "job.json", {"layout": LAYOUT, "job": "12"})
    (RECORD_DAMAGES | RECORDS[name])[damage](run / name)
    before = contents(run)
    with pytest.raises(ValueError, match=name):
        check_run_folder(str(run), None)
        read_record(run, "job.json")
        read_config(run)
    for main in (status_main, report_main):
        if (name, main) == ("job.json", report_main):
            continue  # a page tells nothing of it
        monkeypatch.setattr(sys, "argv", ["command", str(run)])
        assert main() == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ") and name in said.err
    assert contents(run) == before


@pytest.mark.parametrize("damage", ["torn", "middle", "shorter", "a folder"])
def test_a_log_that_lost_what_finished_stages_wrote_is_one_line(tmp_path: Path, damage: str) -> None:
    run = start(tmp_path / "run")
    log = run.path / "metrics.jsonl"
    log.write_text('{"time": 1, "step": 1}\n' * 3)
    run.stages["export"]["metrics_position"] = log.stat().st_size
    write_json(run.record_path, run.record)
    check_metrics(run.path)
    content = {"torn": '{"time"', "middle": '{"time": 1}\n{"t\n' * 9, "shorter": '{"time": 1}\n'}
    if damage == "a folder":
        _folder_of(log)
    else:
        log.write_text(content[damage])
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl.*move it away"):
        check_metrics(run.path)
    log.rename(tmp_path / "away")
    check_metrics(run.path)
    again = RunFolder(run.path)
    again.open(1)
    assert again.metrics_position() == 0


@pytest.mark.parametrize("given", ["", "  "])
def test_no_folder_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="names no folder"):
        check_run_folder(given, None)


def test_a_way_round_through_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """It would be made on the way, and the other one then be found."""
    write_text(tmp_path / "mine" / "x", "mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        check_run_folder(f"{tmp_path}/new/../mine", None)


def test_a_sweep_claims_its_folder_too(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for _ in range(2):
        check_run_folder(str(sweep / "a=1"), str(sweep / "shared"))
        claim_run(sweep / "a=1", str(sweep / "shared"), "starting")
    assert contents(sweep).keys() == {"sweep.json", "a=1/run.json"}
    mine = tmp_path / "mine"
    write_text(mine / "shared" / "report.html", "mine")
    with pytest.raises(ValueError, match="holds no sweep of transact"):
        check_run_folder(str(mine / "a=1"), str(mine / "shared"))


def test_a_process_killed_while_it_claims_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    assert is_unclaimed(tmp_path)
    check_run_folder(str(tmp_path), None)
    claim_run(tmp_path, None, "submitted")
    assert read_json(tmp_path / "run.json") == {
        "layout": LAYOUT,
        "state": "submitted",
        "error": None,
        "stage": None,
        "restarts": 0,
        "stages": {},
    }


@pytest.mark.parametrize("number", [1, 99, 100, 1000])
def test_checkpoints_of_any_round_are_the_run_s_own(tmp_path: Path, number: int) -> None:
    """prune.rounds may be up to 1000."""
    folder = RunFolder(tmp_path)
    folder.open(1)
    folder.announce(tmp_path / "checkpoints")
    saved = tmp_path / "checkpoints" / f"{round_name(number)}_step_00000010"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    folder.remove_checkpoints(round_name(number))
    assert not saved.exists()


def test_names_outside_the_folder_are_no_record(tmp_path: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../b", ""):
        record: dict[str, Any] = {"layout": LAYOUT, "state": "done", "made": [name]}
        write_json(tmp_path / "run.json", record)
        with pytest.raises(DamagedFile):
            read_record(tmp_path)
