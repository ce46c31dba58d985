"""Compressed files, CSV and Arrow: the same documents as of plain files, and one line where they are damaged."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc
import pytest

from transact.config.inputs import TextConfig
from transact.data import streamed_files
from transact.data.rows import LeftOut
from transact.data.text import check_text, documents, text_files

ROWS = ["first text\nof two lines", "second ☃ text", 'of "quotes", and\r\ncommas', "x" * 200_000]
LINES = "".join(json.dumps({"id": number, "text": row}) + "\n" for number, row in enumerate(ROWS)).encode()


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


def read(*paths: Path, field: str = "text", left_out: LeftOut | None = None) -> list[str]:
    config = TextConfig(source="files", files=[str(path) for path in paths], text_field=field)
    check_text(config, "data.train")
    return list(documents(config, "data.train", left_out))


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("compression", COMPRESSED)
def test_json_lines(compression: str, tmp_path: Path) -> None:
    """Of two streams behind each other too, as parallel compressors write them."""
    compress = COMPRESSED[compression]
    (tmp_path / f"a.jsonl{compression}").write_bytes(compress(LINES))
    (tmp_path / f"b.json{compression}").write_bytes(compress(LINES) + compress(LINES))
    assert read(tmp_path / f"a.jsonl{compression}") == ROWS
    assert read(tmp_path / f"b.json{compression}") == [*ROWS, *ROWS]


@pytest.mark.parametrize("compression", COMPRESSED)
def test_text_comes_in_pieces_and_nothing_is_lost(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_files, "TEXT_BYTES", 101)
    text = (
        "".join(f"line {number} ☃{'∎' * (number % 97)}\n" for number in range(300)) + "☃" * 500
    )  # no line, at the end
    path = tmp_path / f"long.txt{compression}"
    path.write_bytes(COMPRESSED[compression](text.encode()))
    pieces = read(path)
    assert "".join(pieces) == text
    assert len(pieces) > 50 and max(map(len, pieces)) <= 202


def test_csv_with_quotes_line_ends_and_long_fields(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [["id", "body"], *([str(number), row] for number, row in enumerate(ROWS))])
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert read(path, field="body") == ROWS
    assert read(tmp_path / "rows.csv.gz", field="body") == ROWS


def test_arrow_of_the_library_datasets_and_of_arrow_itself(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ROWS, "n": list(range(len(ROWS)))}).save_to_disk(str(tmp_path / "saved"))
    (saved,) = (tmp_path / "saved").glob("*.arrow")
    table = pyarrow.table({"text": ROWS})
    with pyarrow.ipc.new_file(tmp_path / "random_access.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2)
    assert read(saved) == ROWS
    assert read(tmp_path / "random_access.arrow") == ROWS


def test_files_mix_and_rows_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": " "}\n{"text": "two"}\n'))
    write_csv(tmp_path / "b.csv", [["text", "id"], ["three", "1"], [], ["", "2"], ["four", "3"]])
    left_out = LeftOut()
    found = read(tmp_path / "a.jsonl.gz", tmp_path / "b.csv", left_out=left_out)
    assert sorted(found) == ["four", "one", "three", "two"]
    assert {found.index("one"), found.index("three")} == {0, 1}  # a document of each in turn
    assert left_out.rows == 3


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_file_that_was_cut_off_is_told_by_its_name(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.jsonl{compression}"
    lines = b"".join(json.dumps({"text": f"{number} {number**7}"}).encode() + b"\n" for number in range(40_000))
    path.write_bytes(COMPRESSED[compression](lines)[:-200])
    with pytest.raises(
        ValueError, match=rf"^data\.train\.files: '[^\n]*cut.jsonl{compression}' cannot be read from line"
    ):
        read(path)


# Compressed bytes hold the time, and two workers must give a test one name: so they are made in the test.
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("other.parquet.gz", b"PAR1", "is not one of"),
        ("other.zip", b"words", "is not one of"),
        ("binary.txt.gz", b"a\0b", "is binary"),
        ("blank.txt.gz", b" \n", "holds only white space"),
        ("other_field.jsonl.gz", b'{"body": "a"}\n', "which has: 'body'"),
        ("number.jsonl.gz", b'{"text": "a"}\n{"text": 5}\n', "holds a int as 'text'.*in line 2"),
        ("other_field.csv", b"id,body\n1,a\n", "which has: 'id', 'body'"),
        ("twice.csv", b"text,text\n1,a\n", "which has: 'text', 'text'"),
        ("quote.csv", b'text\n"a"b\n', "cannot be read from row 1 on"),
        ("latin.csv", b"text\n" + b"a\n" * 100_000 + b"caf\xe9\n", "cannot be read from row"),
        ("no.arrow", b"words that are no table", "is not a complete Arrow file"),
    ],
)
def test_what_is_no_text_is_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESSED.get(path.suffix, bytes)(content))
    with pytest.raises(ValueError, match=rf"^data\.train\.[^\n]*{reason}[^\n]*$"):
        read(path)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_name_that_promises_a_compression_that_is_not_there(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"plain.jsonl{compression}"
    path.write_bytes(LINES)
    with pytest.raises(ValueError, match=r"^data\.train\.files: [^\n]* cannot be read: [^\n]*$"):
        read(path)


def test_a_pattern_names_compressed_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"c4-{number}.json.gz").write_bytes(gzip.compress(LINES))
    config = TextConfig(source="files", files=[str(tmp_path / "*.json.gz")])
    assert len(text_files(config, "data.train")) == 3
