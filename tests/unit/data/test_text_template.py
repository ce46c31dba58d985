"""Several fields of a row as one text: the same from every kind of file, as Python's own formatting makes it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from transact.config.compose import compose_config
from transact.config.inputs import TextConfig
from transact.data.rows import LeftOut
from transact.data.text import check_text, documents, text_identity

TEMPLATE = "# {title}\n\n{the text} {{x}} ({title})"
ROWS = [
    {"title": "One", "the text": "first ☃\nbody", "id": "1"},
    {"title": "", "the text": "second", "id": "2"},
    {"title": None, "the text": "third", "id": "3"},
    {"title": "Four", "the text": None, "id": "4"},
    {"title": " ", "the text": None, "id": "5"},
]
EXPECTED = [
    TEMPLATE.format(**{name: value or "" for name, value in row.items()})
    for row in ROWS
    if any((row[name] or "").strip() for name in ("title", "the text"))
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A null is written as one in the first place, and left out of its row later."""
    kept = [row if not n else {k: v for k, v in row.items() if v is not None} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def write_compressed(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "jsonl": write_lines,
    "json.gz": write_compressed,
    "csv": write_csv,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


def config_of(path: Path, **settings: Any) -> TextConfig:
    return TextConfig(source="files", files=[str(path)], **{"text_template": TEMPLATE, **settings})


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(kind: str, tmp_path: Path) -> None:
    """Null and missing fields count as empty; a row without words in any field is counted as left out."""
    path, left_out = tmp_path / f"rows.{kind}", LeftOut()
    WRITERS[kind](path, ROWS)
    check_text(config_of(path), "data.train")
    assert list(documents(config_of(path), "data.train", left_out)) == EXPECTED
    assert left_out.rows == 1 and "5 of" in (left_out.first or "")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_field_that_a_file_lacks_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path, ROWS)
    with pytest.raises(ValueError, match=r"^data\.train\.text_template: 'body' is not in '.*', which has: 'title', "):
        check_text(config_of(path, text_template="{title} {body}"), "data.train")


def test_a_field_that_is_no_text_is_refused(tmp_path: Path) -> None:
    rows = [{"title": "One", "id": 1}]
    write_parquet(tmp_path / "rows.parquet", rows)
    write_lines(tmp_path / "rows.jsonl", rows)
    for name, words in (("rows.parquet", "is of type 'int64'"), ("rows.jsonl", "holds a int as 'id'")):
        with pytest.raises(ValueError, match=words):
            check_text(config_of(tmp_path / name, text_template="{title} {id}"), "data.train")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("plain {{x}}", "it has no field"),
        ("{title", "expected '}'"),
        ("title}", "Single '}'"),
        ("{}", "a name in braces and no more"),
        ("{title.x}", "a name in braces and no more"),
        ("{title[0]}", "a name in braces and no more"),
        ("{title!r}", "a name in braces and no more"),
        ("{title:>9}", "a name in braces and no more"),
    ],
)
def test_a_template_has_plain_fields_alone(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.\*\.text_template='.*' is not allowed: ") as refused:
        TextConfig(source="files", files=["a.jsonl"], text_template=template)
    assert words in str(refused.value)


@pytest.mark.parametrize("other", ["text_field", "messages_field"])
def test_a_text_is_named_in_one_way(other: str) -> None:
    with pytest.raises(ValueError, match=r"text_template=.*exclude each other"):
        TextConfig(source="files", files=["a.jsonl"], text_template="{a}", **{other: "body"})  # type: ignore[arg-type]


def test_the_template_is_part_of_what_a_store_depends_on(tmp_path: Path) -> None:
    """However its line breaks are written."""
    path = tmp_path / "rows.jsonl"
    write_lines(path, ROWS)
    asked = [{"text_template": None}, {"text_template": "{title}\n{id}"}, {"text_template": "{title} {id}"}]
    found = [text_identity(config_of(path, **each), "data.train") for each in asked]
    assert all(found.count(each) == 1 for each in found)
    assert text_identity(config_of(path, text_template=r"{title}\n{id}"), "data.train") == found[1]


@pytest.mark.parametrize("typed", [r"{title}\n\t{text}", "{title}\n\t{text}"])
def test_the_command_line_takes_line_breaks_either_way(typed: str) -> None:
    files = ["data.train.files=[a.jsonl]", "data.evaluation.files=[b.jsonl]"]
    asked = ["name=x", "model.path=m", "prune.remove_fraction=0.3", "data=local", *files]
    text = compose_config([*asked, f'data.train.text_template="{typed}"']).data.train
    assert text.row_setting == ("text_template", "{title}\n\t{text}") and text.row_fields == ("title", "text")
