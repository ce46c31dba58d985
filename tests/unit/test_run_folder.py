"""run.json: which stages are finished, and with which settings."""

from __future__ import annotations

from pathlib import Path

from transact.files import read_json, write_text
from transact.runs.run_folder import RunFolder

STAGES = ("recover", "tasks", "export")


def finished(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.open(1)
    for number, name in enumerate(STAGES):
        run.begin(name, [folder / name])
        write_text(folder / name, name)
        run.finish(name, [folder / name], 1.0, number, {}, {"shots": 5} if name == "tasks" else None)
    return run


def test_a_stage_with_other_settings_is_done_again_with_those_after_it(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert all(run.is_finished(name) for name in STAGES)
    assert run.is_finished("tasks", {"shots": 5})
    assert not run.is_finished("tasks", {"shots": 0})
    run.begin("tasks", order=STAGES)
    assert list(run.stages) == ["recover"]
    assert run.metrics_position() == 0


def test_a_new_stage_in_a_finished_run_takes_those_after_it_along(tmp_path: Path) -> None:
    run = finished(tmp_path)
    del run.stages["tasks"]
    run.begin("tasks", order=STAGES)
    assert list(run.stages) == ["recover"]


def test_an_earlier_stage_that_was_asked_for_later_stays(tmp_path: Path) -> None:
    """A GGUF file of a finished run, and then other settings of the efficiency stage, which needs none of it."""
    run = finished(tmp_path)
    run.finish("gguf", [tmp_path / "export"], 1.0, 9, {})
    run.begin("export", order=["recover", "tasks", "gguf", "export"])
    assert list(run.stages) == ["recover", "tasks", "gguf"]


def test_every_start_is_recorded(tmp_path: Path) -> None:
    for _ in range(3):
        finished(tmp_path)
    record = read_json(tmp_path / "run.json")
    assert len(record["starts"]) == 3
    assert record["restarts"] == 2


def test_more_that_is_asked_of_a_finished_run_is_no_restart(tmp_path: Path) -> None:
    finished(tmp_path).end("done")
    finished(tmp_path)
    assert read_json(tmp_path / "run.json")["restarts"] == 0


def test_what_a_later_round_superseded_is_gone_and_its_stage_finished(tmp_path: Path) -> None:
    """What a user put there stays; made again with the same bytes, nothing after it is done again."""
    run = RunFolder(tmp_path)
    run.open(1)
    folder = tmp_path / "round_01" / "sliced"

    def make() -> bool:
        run.begin("round_01/slice", [folder])
        write_text(folder / "config.json", "{}")
        return run.finish("round_01/slice", [folder], 1.0, 0, {})

    make()
    run.begin("round_01/recover", [tmp_path / "recovered"])
    write_text(tmp_path / "recovered", "weights")
    run.finish("round_01/recover", [tmp_path / "recovered"], 1.0, 1, {}, reads=["round_01/slice"])
    write_text(folder / "notes.txt", "mine")
    run.supersede(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    write_text(folder / "tokenizer.json", "also mine, with a name of ours")
    again = RunFolder(tmp_path)
    again.open(1)
    again.supersede(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "tokenizer.json"]
    assert again.is_finished("round_01/slice") and not again.recorded(folder)
    assert again.superseded(folder) == "round_01/slice" and again.superseded(tmp_path / "recovered") is None
    run.mark_damaged("round_01/slice", "was removed")
    assert make()
    assert run.superseded(folder) is None and run.is_finished("round_01/recover")


def test_reading_what_was_written_gives_signs_of_life(tmp_path: Path) -> None:
    """Digests that a stage did not return are computed at its end, which may take longer than a hang."""
    run, signs = RunFolder(tmp_path), []
    run.on_read = lambda: signs.append(1)
    run.open(1)
    for name, known in (("export", {}), ("gram", {"gram": {"size": 4, "sha256": "known"}})):
        run.begin(name, [tmp_path / name])
        write_text(tmp_path / name, name)
        run.finish(name, [tmp_path / name], 1.0, 0, known)
    assert len(signs) == 1
