"""What is read of a row: one field, several by a template, or a conversation, as the settings of a text say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transact.config.inputs import TextConfig
from transact.config.text_template import parse_template
from transact.data.conversations import TOOLS_FIELD, conversation_of
from transact.data.rows import has_words, text_of_row

SHOWN_FIELDS = 20


def reader_of(config: TextConfig) -> Callable[[Mapping[str, Any]], str | None]:
    """Return what reads the text of a row."""
    if config.messages_field is not None:
        return partial(conversation_of, messages_field=config.messages_field)
    if config.text_template is not None:
        return partial(_text_of_template, pieces=parse_template(config.text_template))
    return partial(text_of_row, text_field=config.text_field)


def read_fields(config: TextConfig) -> tuple[str, ...]:
    """Return the fields of a row that are read: those that it must have, and of a conversation its tools."""
    return config.row_fields if config.messages_field is None else (*config.row_fields, TOOLS_FIELD)


def check_fields(config: TextConfig, field: str, place: str, names: Sequence[str]) -> None:
    """Raise ValueError unless a file or data set has every field that is read, once.

    Args:
        field: the setting of the text.
        place: the file or data set.
        names: of its fields.
    """
    for name in config.row_fields:
        if names.count(name) != 1:
            shown = ", ".join(map(repr, names[:SHOWN_FIELDS])) or "nothing"
            raise ValueError(f"{name_of_field(config, field, name)} is not in {place!r}, which has: {shown}")


def name_of_field(config: TextConfig, field: str, name: str) -> str:
    """Return a field of rows for a message, with the setting that names it."""
    setting, value = config.row_setting
    return f"{field}.{setting}={name!r}" if name == value else f"{field}.{setting}: {name!r}"


def _text_of_template(row: Mapping[str, Any], pieces: tuple[tuple[str, str | None], ...]) -> str | None:
    """Return the text that a template makes of a row, None where all its fields are empty; null counts as empty.

    Raises:
        NoText: a field holds something other than text.
    """
    texts = {name: text_of_row(row, name) or "" for _, name in pieces if name is not None}
    if not any(map(has_words, texts.values())):
        return None
    return "".join(literal + ("" if name is None else texts[name]) for literal, name in pieces)
