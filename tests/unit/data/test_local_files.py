"""Documents come from all over the files: each once, in an order that follows from names and sizes alone."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from transact.config.inputs import TextConfig
from transact.data import local_files
from transact.data.rows import LeftOut
from transact.data.text import check_text, documents, text_files

ROWS = [f"document {number} " + "of many words " * (number % 40) for number in range(3000)]


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), path, row_group_size=100)
    else:
        path.write_text("\n".join(ROWS))
    return path


def read(*paths: Path) -> list[str]:
    config = TextConfig(source="files", files=[str(path) for path in paths])
    check_text(config, "data.train")
    return list(documents(config, "data.train"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "LINES_BYTES", 10_007)
    monkeypatch.setattr(local_files, "TEXT_BYTES", 4001)
    monkeypatch.setattr(local_files, "OPEN_PARTS", 20)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_row_once_and_the_first_from_everywhere(kind: str, tmp_path: Path) -> None:
    found = read(write(tmp_path, kind))
    assert sorted(found) == sorted(ROWS)
    first = sorted(ROWS.index(row) for row in found[:20])
    assert first[0] < 1000
    assert first[-1] > 2000
    assert max(after - before for before, after in itertools.pairwise(first)) < 1000


def test_a_long_text_file_is_cut_at_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path, "txt")
    pieces = read(path)
    text = path.read_text()
    assert len(pieces) > 100
    assert sum(map(len, pieces)) == len(text)
    assert all(piece in text and (piece.endswith("\n") or text.endswith(piece)) for piece in pieces)
    assert pieces != sorted(pieces, key=text.index), "not from the beginning on"


@pytest.mark.parametrize("text", ["☃" * 40_000, "ab " * 40_000, "x" * 100_000, "a\r\n" * 30_000])
def test_cuts_never_fall_into_a_character_or_a_line_end(text: str, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text(text, newline="")
    pieces = read(path)
    plain = text.replace("\r\n", "\n")
    assert len(pieces) > 5
    assert len("".join(pieces)) == len(plain)
    assert set("".join(pieces)) == set(plain)


def test_the_order_is_the_same_wherever_the_files_are(tmp_path: Path) -> None:
    paths = [write(tmp_path / "here", kind) for kind in ("jsonl", "txt", "parquet")]
    moved = [Path(shutil.copy2(path, tmp_path)) for path in paths]
    assert read(*paths) == read(*moved) == read(*reversed(paths))


def test_lines_longer_than_a_part_are_read_once(tmp_path: Path) -> None:
    rows = [f"{number} " + "y" * (number % 7 * 9000) for number in range(50)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert sorted(read(path)) == sorted(rows)


def test_rows_without_text_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text('{"text": "a"}\n{"body": "b"}\n{"text": null}\n{"text": " "}\n{"text": "c"}\n')
    left_out = LeftOut()
    config = TextConfig(source="files", files=[str(path)])
    assert list(documents(config, "data.train", left_out)) == ["a", "c"]
    assert left_out.rows == 3
    assert left_out.first == f"line 2 of {str(path)!r}"


def test_a_file_is_found_by_its_very_name_before_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "t[1].txt"
    path.write_text("words")
    assert text_files(TextConfig(source="files", files=[str(path)]), "data.train") == [path]
