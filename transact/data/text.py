"""Documents from local files, a hub dataset or this Python's library, as a stream of strings."""

from __future__ import annotations

import codecs
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transact.config import TextConfig
from transact.data.hub_text import hub_documents
from transact.data.local_files import READERS, LeftOut, NoText, Source, has_words, shuffled_documents, text_of_line
from transact.data.python_stdlib import stdlib_documents, stdlib_identity

SNIFFED_BYTES = 65_536
SHOWN_FIELDS = 20
TEXT_TYPES = ("string", "large_string", "string_view")


def text_files(config: TextConfig, field: str) -> list[Path]:
    """The local files that the patterns name, sorted. A file of that very name comes before a pattern.

    Raises:
        ValueError: a pattern names nothing, or a file of a kind that is not read.
    """
    found: set[Path] = set()
    for pattern in config.files:
        files = [path for path in _matches(pattern) if path.is_file()]
        if not files:
            hint = ": it is a folder; add /*.txt or the like" if Path(pattern).is_dir() else ""
            raise ValueError(f"{field}.files: {pattern!r} names no file{hint}")
        found.update(files)
    for path in found:
        if path.suffix not in READERS:
            raise ValueError(f"{field}.files: {str(path)!r} is not one of {', '.join(READERS)}")
    return sorted(found)


def _matches(pattern: str) -> list[Path]:
    if "\0" in pattern:
        return []
    literal = Path(pattern)
    return [literal] if literal.is_file() else [Path(name) for name in glob.glob(pattern, recursive=True)]


def is_same_content(one: Path, other: Path) -> bool:
    """Whether two files of the same size are one, or alike at the beginning, in the middle and at the end."""
    if one.samefile(other):
        return True
    size = one.stat().st_size
    with one.open("rb") as first, other.open("rb") as second:
        for place in (0, size // 2, max(0, size - SNIFFED_BYTES)):
            first.seek(place)
            second.seek(place)
            if first.read(SNIFFED_BYTES) != second.read(SNIFFED_BYTES):
                return False
    return True


def check_text(config: TextConfig, field: str) -> None:
    """Look at the beginning of every file before any work starts.

    Raises:
        ValueError: a file is missing, empty, binary, or has no text field.
    """
    if config.source != "files":
        return
    for path in text_files(config, field):
        if path.stat().st_size == 0:
            raise ValueError(f"{field}.files: {str(path)!r} is empty")
        check = _check_parquet if path.suffix == ".parquet" else _check_characters
        check(path, config.text_field, field)


def _check_characters(path: Path, text_field: str, field: str) -> None:
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    try:
        # Incremental: a character may be cut off at the end of what was read.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{field}.files: {str(path)!r} is binary, not UTF-8 text")
    if not has_words(text.lstrip("\ufeff")):
        raise ValueError(f"{field}.files: {str(path)!r} holds only white space")
    if READERS[path.suffix] == "json":
        _check_json(path, text_field, field)


def _check_json(path: Path, text_field: str, field: str) -> None:
    """The first line has the field."""
    with path.open("rb") as file:
        line = file.readline()
    first = line.removeprefix(codecs.BOM_UTF8).splitlines()[:1] or [b""]
    try:
        names: list[str] = []
        text = text_of_line(first[0], text_field, names=names)
    except NoText as error:
        raise ValueError(f"{field}.files: {str(path)!r} {error}, in line 1") from None
    if text is None:
        raise _no_such_field(path, text_field, field, names)


def _no_such_field(path: Path, text_field: str, field: str, names: list[str]) -> ValueError:
    shown = ", ".join(map(repr, names[:SHOWN_FIELDS])) or "nothing"
    return ValueError(f"{field}.text_field={text_field!r} is not in {str(path)!r}, which has: {shown}")


def _check_parquet(path: Path, text_field: str, field: str) -> None:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.lib.ArrowException, OSError, ValueError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete parquet file") from None
    if rows == 0:
        raise ValueError(f"{field}.files: {str(path)!r} is empty: it has no rows")
    if schema.names.count(text_field) != 1:
        raise _no_such_field(path, text_field, field, schema.names)
    kind = schema.field(text_field).type
    if str(getattr(kind, "value_type", kind)) not in TEXT_TYPES or str(kind).startswith("list"):
        raise ValueError(
            f"{field}.text_field={text_field!r} is of type {str(kind)!r} in {str(path)!r}, it must be text"
        )


def documents(config: TextConfig, field: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """Every document once, in a fixed order that mixes all files and places. Rows without text are left out.

    Args:
        left_out: counts those rows.

    Raises:
        ValueError: names the file and the row that cannot be read, and why.
    """
    left_out = left_out or LeftOut()
    if config.source == "python_stdlib":
        return stdlib_documents(config.part)
    if config.source == "hub":
        return hub_documents(config, field, left_out)
    return shuffled_documents(
        [
            Source(path=path, text_field=config.text_field, setting=f"{field}.files", left_out=left_out)
            for path in text_files(config, field)
        ]
    )


def text_identity(config: TextConfig, field: str) -> dict[str, Any]:
    """What a token store of this text depends on besides the tokenizer. Local files: name, size, time of change."""
    if config.source == "python_stdlib":
        return {"source": "python_stdlib", "part": config.part, "order": "hashed", "files": stdlib_identity()}
    if config.source == "hub":
        names = ("hub_id", "hub_config", "hub_revision", "split", "text_field")
        return {"source": "hub", "order": "hashed"} | {name: getattr(config, name) for name in names}
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in text_files(config, field)]
    return {"source": "files", "order": "hashed", "text_field": config.text_field, "files": files}
