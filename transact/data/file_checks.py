"""Checks of the beginning of a data file: that it is what its name says, and has the fields that are read."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

from transact.config.inputs import TextConfig
from transact.data.local_files import open_parquet
from transact.data.remote_files import DataFile, RemoteUnavailable
from transact.data.row_reader import check_fields, name_of_field, reader_of
from transact.data.rows import NoText, has_words, row_of_line
from transact.data.streamed_files import open_arrow, open_csv, open_stream

SNIFFED_BYTES = 65_536
TEXT_TYPES = ("string", "large_string", "string_view")


def _check_characters(path: DataFile, config: TextConfig, field: str) -> None:
    with open_stream(path, SNIFFED_BYTES) as file:
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


def _check_json(path: DataFile, config: TextConfig, field: str) -> None:
    """Raise ValueError unless the first line has the fields that are read."""
    _check_characters(path, config, field)
    with open_stream(path, SNIFFED_BYTES) as file:
        line = file.readline()
    first = line.removeprefix(codecs.BOM_UTF8).splitlines()[:1] or [b""]
    try:
        row = row_of_line(first[0])
        if row is not None:
            reader_of(config)(row)
    except NoText as error:
        raise ValueError(f"{field}.files: {str(path)!r} {error}, in line 1") from None
    check_fields(config, field, str(path), [*(row or ())])


def _check_csv(path: DataFile, config: TextConfig, field: str) -> None:
    """Raise ValueError unless the first row names the fields that are read, once."""
    _check_characters(path, config, field)
    with open_csv(path, SNIFFED_BYTES) as rows:
        names = next(rows, [])
    check_fields(config, field, str(path), names)


def _check_parquet(path: DataFile, config: TextConfig, field: str) -> None:
    import pyarrow.lib

    try:
        with open_parquet(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except RemoteUnavailable:
        raise
    except (pyarrow.lib.ArrowException, OSError, ValueError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete parquet file") from None
    if rows == 0:
        raise ValueError(f"{field}.files: {str(path)!r} is empty: it has no rows")
    _check_schema(schema, path, config, field)


def _check_arrow(path: DataFile, config: TextConfig, field: str) -> None:
    import pyarrow.lib

    try:
        with open_arrow(path, SNIFFED_BYTES) as (schema, _):
            pass
    except (pyarrow.lib.ArrowException, OSError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete Arrow file") from None
    _check_schema(schema, path, config, field)


def _check_schema(schema: Any, path: DataFile, config: TextConfig, field: str) -> None:
    check_fields(config, field, str(path), schema.names)
    for name in config.row_fields if config.messages_field is None else ():
        kind = schema.field(name).type
        if str(getattr(kind, "value_type", kind)) not in TEXT_TYPES or str(kind).startswith("list"):
            named = name_of_field(config, field, name)
            raise ValueError(f"{named} is of type {str(kind)!r} in {str(path)!r}, it must be text")


CHECKS: dict[str, Callable[[DataFile, TextConfig, str], None]] = {
    "text": _check_characters,
    "json": _check_json,
    "csv": _check_csv,
    "parquet": _check_parquet,
    "arrow": _check_arrow,
}
