"""What Hydra would do in its own way is refused with what to use instead; nothing that was typed is ignored."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from transact.config.request import check_arguments
from transact.run import main
from transact.stages.preflight import check_folder, make_folder


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("hydra/launcher=submitit_local", "launch=local"),
        ("hydra/launcher=submitit_slurm", "launch=slurm"),
        ("hydra/launcher=joblib", "launch=local"),
        ("hydra.launcher._target_=os.system", "launch=local"),
        ("~hydra.launcher", "launch=local"),
        ("hydra/sweeper=optuna", "-m"),
        ("hydra.sweeper.max_batch_size=3", "-m"),
        ("hydra.run.dir=elsewhere", "output_dir=FOLDER"),
        ("hydra.sweep.dir=elsewhere", "output_dir=FOLDER"),
        ("hydra.sweep.subdir=elsewhere", "output_dir=FOLDER"),
        ("hydra.output_subdir=elsewhere", "output_dir=FOLDER"),
        ("hydra.job.name=other", "name=NAME"),
        ("++hydra.job.chdir=true", "output_dir=FOLDER"),
        ("hydra/job_logging=default", "logs/"),
        ("hydra.verbose=true", "--help"),
        ("+hydra.job.env_set.KEY=value", "--help"),
        ("command=x", "the command sets it itself"),
        ("+share_dir=x", "the command sets it itself"),
        ("--experimental-rerun=x", "pickle"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("seed=range(1,1000000000)", "999,999,999 points"),
        ("seed=range(0,1e308,1e-300)", "points"),
        ("seed=range(1,9,0)", "step that is not 0"),
        ("seed=range(3,3)", "a sweep of 0 points"),
        ("launch.setup=[a],[b]", "cannot be swept over"),
    ],
)
def test_hydras_own_ways_are_refused(argument: str, instead: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_arguments(["name=x", argument])
    assert instead in str(caught.value)


@pytest.mark.parametrize(
    ("word", "way_out"),
    [
        ("demo", "it must be KEY=VALUE; --help lists the keys"),
        ("eval.texts.a/b={source: files}", "need quotes of their own: eval.texts.a/b='\"VALUE\"'"),
        ("output_dir=~/runs/x", "write $HOME"),
        ("data.train.files=[~/text/*.jsonl]", "write $HOME"),
        ("data.train.files=[/text/a(1).txt]", "need quotes of their own"),
        ("name=Größe", "name='\"VALUE\"'"),
        ("name=a=b", "need quotes of their own"),
        ('name="open', "need quotes of their own"),
        ("name=${open", "need quotes of their own"),
    ],
)
def test_what_hydras_grammar_does_not_take_is_named_with_a_way_out(word: str, way_out: str) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        check_arguments(["seed=1", word])
    assert str(caught.value).startswith(f"{word!r} cannot be read") and way_out in str(caught.value)
    assert "http" not in str(caught.value) and "Exception" not in str(caught.value)


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--info"], ["--hydra-help"], ["-sc", "install=bash"]])
def test_information_is_no_run(arguments: list[str]) -> None:
    assert not check_arguments(arguments)


def test_a_current_folder_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["transact", "name=x"])
    assert main() == 2
    assert capsys.readouterr().err == "error: the current folder has been removed: change to another\n"
    os.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments", [["name=x"], ["-m", "name=x", "seed=1,2"], ["hydra.mode=MULTIRUN", "seed=range(3)"]]
)
def test_a_run(arguments: list[str]) -> None:
    assert check_arguments(arguments)


@pytest.mark.parametrize("arguments", [[], ["-m"], ["-m", "seed=1,2"], ["name=x", "--config-name=launch/local"]])
def test_a_request_that_is_not_whole_ends_with_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["transact", *arguments])
    assert main() == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not list(tmp_path.iterdir())


def test_a_hydra_of_a_users_own_files_is_seen_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nhydra:\n  run:\n    dir: elsewhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["transact", "--config-dir", str(tmp_path), "+experiment=mine", "name=x"])
    assert main() == 2
    assert "hydra.run='elsewhere' is not allowed" in capsys.readouterr().err


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nothing").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("file", "it is a file"),
        ("file/below", "it is below a file"),
        ("circle", "circle"),
        ("circle/below/it", "circle"),
        ("nothing", "is a link to nothing"),
        ("nothing/below", "is a link to nothing"),
        ("x" * 300, "a name in it is too long"),
        ("new/" + "x" * 300 + "/below", "a name in it is too long"),
        ("/dev/null", "it is a file"),
        ("/dev/null/x", "it is below a file"),
    ],
)
def test_a_place_that_cannot_be_written(places: Path, path: str, named: str) -> None:
    before = sorted(places.rglob("*"))
    with pytest.raises(ValueError, match="output_dir=") as caught:
        check_folder("output_dir", str(places / path))
    assert named in str(caught.value)
    assert sorted(places.rglob("*")) == before


def test_a_folder_that_only_the_system_knows_to_be_impossible() -> None:
    with pytest.raises(ValueError, match="output_dir='/proc/nothing' is not allowed"):
        make_folder("output_dir", "/proc/nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read(places: Path) -> None:
    places.chmod(0o555)
    with pytest.raises(ValueError, match="is not writable"):
        check_folder("output_dir", str(places / "new"))


def test_a_place_that_can(places: Path) -> None:
    (places / "linked").symlink_to(places)
    for path in (".", "new", "new/below", "linked", "linked/new"):
        check_folder("output_dir", str(places / path))
