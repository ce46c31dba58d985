"""Documents from every kind of local source."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from transact.config.inputs import TextConfig
from transact.data.stdlib_text import is_held_out, source_files, stdlib_documents, stdlib_folder
from transact.data.text import check_text, documents, shared_file, text_files, text_identity

ROWS = ["first text\nof two lines", "second ☃ text"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(ROWS[0])
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": row, "id": 1}) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS, "n": [1, 2]}), tmp_path / "c.parquet")
    return tmp_path


@pytest.mark.parametrize(("name", "expected"), [("a.txt", ROWS[:1]), ("b.jsonl", ROWS), ("c.parquet", ROWS)])
def test_each_format(name: str, expected: list[str], folder: Path) -> None:
    config = TextConfig(source="files", files=[str(folder / name)])
    check_text(config, "data.train")
    assert list(documents(config, "data.train")) == expected


def test_patterns_are_sorted_and_formats_mix(folder: Path) -> None:
    config = TextConfig(source="files", files=[str(folder / "*")])
    assert [path.name for path in text_files(config, "data.train")] == ["a.txt", "b.jsonl", "c.parquet"]
    assert sorted(documents(config, "data.train")) == sorted([ROWS[0], *ROWS, *ROWS])


def test_a_character_cut_by_the_sniffed_length_is_no_binary(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    for shift in range(3):
        path.write_text("x" * shift + "☃" * 30_000)
        check_text(TextConfig(source="files", files=[str(path)]), "data.train")


def test_a_changed_file_is_another_text(folder: Path) -> None:
    config = TextConfig(source="files", files=[str(folder / "a.txt")])
    before = text_identity(config, "data.train")
    (folder / "a.txt").write_text("something else")
    assert text_identity(config, "data.train") != before


def test_the_parts_of_the_library_share_nothing() -> None:
    train, held_out = set(stdlib_documents("train")), set(stdlib_documents("heldout"))
    assert len(held_out) > 20
    assert len(train) > 10 * len(held_out)
    assert not train & held_out


def test_nothing_is_held_out_that_some_installations_lack() -> None:
    names = [path.relative_to(stdlib_folder()).as_posix() for path in source_files()]
    held_out = [name for name in names if is_held_out(name)]
    assert held_out
    assert not [name for name in held_out if "test/" in name or "tests/" in name]


def test_many_files_of_one_size_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts of 1000 shards each would be a million comparisons."""
    ones, others = ([tmp_path / f"{text}{number:03}.txt" for number in range(200)] for text in "ab")
    for number, path in enumerate([*ones, *others]):
        path.write_text(f"{number:03}" * 30_000 + "the same end")
    others[150].write_bytes(ones[70].read_bytes())
    opened, as_ever = Counter[Path](), Path.open

    def counted(path: Path, *arguments: Any) -> Any:
        opened[path] += 1
        return as_ever(path, *arguments)

    monkeypatch.setattr(Path, "open", counted)
    assert shared_file([*ones], [*others]) == (ones[70], others[150])
    assert len(opened) == 400 and set(opened.values()) == {1}
    assert shared_file([*ones], [*others[:150]]) is None
    opened.clear()
    others[3].unlink()
    others[3].hardlink_to(ones[5])
    assert shared_file([*ones], [*others]) == (ones[5], others[3]) and not opened
