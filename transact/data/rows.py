"""A row of a file: its text, or why it has none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeGuard

from transact.data.remote_files import DataFile
from transact.errors import Refusal

BYTE_ORDER_MARK = "\ufeff"
JSON_BLANKS = b" \t\r\n"
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class LeftOut:
    """Count of the rows without text: the field is missing, null, or nothing but white space.

    filtered: documents that a filter of the user leaves out.
    """

    rows: int = 0
    first: str | None = None  # where the first of them is
    filtered: int = 0

    def add(self, where: Callable[[], str]) -> None:
        """Count a row; `where` is called for the first one only."""
        self.rows += 1
        self.first = self.first or where()

    def add_filtered(self) -> None:
        self.filtered += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file to read text from.

    Attributes:
        fields: of its rows that are read.
        read: returns the text of a row, None where it has none; raises NoText.
        setting: the one that names the file, for messages.
    """

    path: DataFile
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], str | None]
    setting: str
    left_out: LeftOut

    def refuse(self, reason: str) -> NoReturn:
        """Raise ValueError with the setting, the file and the reason."""
        raise ValueError(f"{self.setting}: {str(self.path)!r} {reason}") from None

    def texts_of_rows(self, rows: Iterable[Mapping[str, Any]], first: int) -> Iterator[str]:
        """Yield the texts of consecutive rows of which the first has this number.

        Raises:
            ValueError: a row is not what is read.
        """
        for number, row in enumerate(rows, start=first):
            try:
                text = self.read(row)
            except NoText as error:
                self.refuse(f"{error}, in row {number:,}")
            yield from self.kept(text, partial("row {:,}".format, number))

    def kept(self, text: str | None, where: Callable[[], str]) -> Iterator[str]:
        """Yield a row's text, or count a row without one; where: "row 5", asked for the first of those only."""
        if has_words(text):
            yield text
        else:
            self.left_out.add(lambda: f"{where()} of {str(self.path)!r}")


def texts_of_lines(source: Source, lines: Iterable[tuple[bytes, bool, Callable[[], str]]]) -> Iterator[str]:
    """Yield the texts of JSON lines, each with whether it is the first of its file, and where it is: "line 5".

    Raises:
        ValueError: a line holds no usable row.
    """
    for line, is_first, where in lines:
        if not line.strip(JSON_BLANKS):
            continue
        try:
            row = row_of_line(line, is_first=is_first)
            text = None if row is None else source.read(row)
        except NoText as error:
            source.refuse(f"{error}, in {where()}")
        yield from source.kept(text, where)


class NoText(Refusal):
    """A line holds no usable row; the message says what is wrong with it."""


def row_of_line(line: bytes, *, is_first: bool = False) -> dict[str, Any] | None:
    """Return the row of a JSON line, or None where that is null.

    Args:
        is_first: the line is the first of its file, which may begin with a byte order mark.

    Raises:
        NoText: the line is not UTF-8 or not a JSON object.
    """
    try:
        decoded = line.decode()
    except UnicodeDecodeError:
        raise NoText("is binary, not UTF-8 text") from None
    try:
        row = json.loads(decoded.removeprefix(BYTE_ORDER_MARK) if is_first else decoded, object_pairs_hook=_once)
    except (ValueError, RecursionError):  # numbers of thousands of digits, deeply nested brackets
        raise NoText("does not hold one JSON object a line") from None
    if row is None:
        return None
    if not isinstance(row, dict):
        raise NoText(f"does not hold one JSON object a line, but a {type(row).__name__}")
    return row


def text_of_row(row: Mapping[str, Any], text_field: str) -> str | None:
    """Return the text of a row, or None where it has none.

    Raises:
        NoText: its field holds something other than text.
    """
    text = row.get(text_field)
    if text is not None and not isinstance(text, str):
        raise NoText(f"holds a {type(text).__name__} as {text_field!r}, it must be text")
    check_characters(text or "", text_field)
    return text


def check_characters(text: str, field: str) -> None:
    """Raise NoText where a field's text holds half of a pair of surrogates, which no tokenizer takes."""
    if not text.isascii() and SURROGATE.search(text):
        raise NoText(f"holds half a character (a lone surrogate) in {field!r}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary; raise ValueError where it has a name twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name twice in one object")
    return row


def has_words(text: str | None) -> TypeGuard[str]:
    """Return whether a text holds anything but white space."""
    return bool(text) and not str(text).isspace()
