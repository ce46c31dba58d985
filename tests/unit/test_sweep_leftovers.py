"""What the points of a sweep share is removed once no point can need it, and nothing else ever is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from transact.distributed.file_lock import exclusive
from transact.files import file_digest, write_text
from transact.runs.run_record import LAYOUT, SWEEP_RECORD, claim, note_points
from transact.stages.sharing import remove_shared_grams, share, take

POINTS = ("fraction=0.1", "fraction=0.2", "fraction=0.3")
SLICED = {"round_01/slice": {"files": {}, "seconds": 1.0, "finished": 1.0, "metrics_position": 0}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Of three points that are all sliced: one is done, one failed later, one goes on."""
    folder = tmp_path / "sweep"
    note_points(str(folder / "shared"), list(POINTS))
    assert not folder.exists()  # nobody began it
    claim(folder, "starting", SWEEP_RECORD)
    note_points(str(folder / "shared"), list(POINTS))
    for name, state in zip(POINTS, ("done", "failed", "running"), strict=True):
        write_point(folder / name, state=state)
    for digest in ("a" * 20, "0123456789abcdef0123"):
        grams = folder / "shared" / f"gram-{digest}" / "gram"
        grams.mkdir(parents=True)
        for layer in range(3):
            (grams / f"layer_{layer:05d}.safetensors").write_bytes(b"matrices")
        (grams.parent / "digests.json").write_text("{}")
    other = folder / "shared" / f"statistics-{'a' * 20}"
    other.mkdir()
    (other / "statistics.safetensors").write_bytes(b"statistics")
    return folder


def write_point(folder: Path, *, state: str = "done", stages: object = SLICED) -> None:
    record = {"layout": LAYOUT, "state": state, "error": None, "stage": None, "restarts": 0, "stages": stages}
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))


def files(sweep: Path) -> set[str]:
    return {path.relative_to(sweep).as_posix() for path in sweep.rglob("*") if path.suffix != ".lock"}


def test_grams_go_with_the_last_point_that_is_sliced(sweep: Path) -> None:
    before = files(sweep)
    remove_shared_grams(sweep / "shared")
    gone = before - files(sweep)
    assert gone == {name for name in before if "/gram-" in name} and len(gone) == 2 * 6
    remove_shared_grams(sweep / "shared")
    assert files(sweep) == before - gone


def remove_folder(folder: Path) -> None:
    (folder / "run.json").unlink()
    folder.rmdir()


STILL_NEEDED: dict[str, Callable[[Path], object]] = {
    "a point that has not begun": lambda sweep: remove_folder(sweep / POINTS[1]),
    "a point that is queued": lambda sweep: write_point(sweep / POINTS[1], state="submitted", stages={}),
    "a point that failed before": lambda sweep: write_point(sweep / POINTS[1], state="failed", stages={}),
    "a damaged record": lambda sweep: (sweep / POINTS[1] / "run.json").write_text("{"),
    "an empty record": lambda sweep: (sweep / POINTS[1] / "run.json").write_text("{}"),
    "a point of an earlier command": lambda sweep: write_point(sweep / "fraction=0.9", stages={}),
    "a point of a later command": lambda sweep: note_points(str(sweep / "shared"), ["fraction=0.4"]),
    "a sweep without a list": lambda sweep: (sweep / SWEEP_RECORD).write_text(f'{{"layout": {LAYOUT}}}'),
    "no record of the sweep": lambda sweep: (sweep / SWEEP_RECORD).unlink(),
    "a list of something else": lambda sweep: (sweep / SWEEP_RECORD).write_text(
        f'{{"layout": {LAYOUT}, "points": [1]}}'
    ),
}


@pytest.mark.parametrize("name", STILL_NEEDED)
def test_they_stay_as_long_as_a_point_may_need_them(sweep: Path, name: str) -> None:
    STILL_NEEDED[name](sweep)
    before = files(sweep)
    remove_shared_grams(sweep / "shared")
    assert files(sweep) == before


def put(path: Path) -> None:
    path.write_text("mine")


def link_grams(folder: Path) -> None:
    (folder / "gram").rename(folder.parent / "mine")
    (folder / "gram").symlink_to(folder.parent / "mine")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: put(folder / "notes.txt"),
        lambda folder: put(folder / "gram" / "notes.txt"),
        lambda folder: put(folder / "gram" / "layer_1.safetensors"),
        lambda folder: (folder / "gram" / "layer_00009.safetensors").mkdir(),
        lambda folder: (folder / "digests.json").unlink(),
        link_grams,
        lambda folder: folder.rename(folder.with_name("gram-of-mine")),
        lambda folder: folder.rename(folder.with_name(folder.name.upper())),
    ],
)
def test_what_is_not_ours_alone_stays(sweep: Path, change: Callable[[Path], object]) -> None:
    folder = sweep / "shared" / f"gram-{'a' * 20}"
    change(folder)
    before = files(sweep)
    remove_shared_grams(sweep / "shared")
    assert {name for name in before - files(sweep) if "0123456789abcdef0123" not in name} == set()


def test_a_point_that_takes_them_over_just_now_is_not_disturbed(sweep: Path) -> None:
    folder = sweep / "shared" / f"gram-{'a' * 20}"
    with exclusive(folder.with_suffix(".lock")):
        remove_shared_grams(sweep / "shared")
        assert len(list((folder / "gram").iterdir())) == 3
    remove_shared_grams(sweep / "shared")
    assert not folder.exists()


def test_a_result_whose_digests_are_known_is_not_read_to_be_shared(tmp_path: Path) -> None:
    made, shared, signs = tmp_path / "made" / "gram", tmp_path / "shared" / "gram", []
    for number in range(2):
        write_text(made / f"layer_0000{number}.safetensors", "matrix")
    known = {"size": 6, "sha256": file_digest(made / "layer_00000.safetensors")}
    share(made, shared, {"layer_00000.safetensors": known}, lambda: signs.append(1))
    assert len(signs) == 1
    assert take(shared, tmp_path / "first" / "gram") is None


@pytest.mark.parametrize("name", ["notes.txt", "layer_1.safetensors", "mine/layer_00000.safetensors"])
def test_a_shared_result_with_files_of_somebody_is_neither_taken_over_nor_replaced(tmp_path: Path, name: str) -> None:
    made, shared = tmp_path / "made" / "gram", tmp_path / "shared" / "gram"
    write_text(made / "layer_00000.safetensors", "matrix")
    share(made, shared, {})
    assert take(shared, tmp_path / "first" / "gram") is None
    write_text(shared / name, "mine")
    problem = take(shared, tmp_path / "second" / "gram")
    assert problem is not None and repr(str(shared / name.split("/")[0])) in problem
    assert not (tmp_path / "second").exists()
    share(made, shared, {})
    assert (shared / name).read_text() == "mine"
