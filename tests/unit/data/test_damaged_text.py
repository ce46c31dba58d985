"""Text as it is found in the world: each file is read correctly, or refused in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Workplace
from transact.config.inputs import TextConfig
from transact.data.text import check_text, documents
from transact.data.token_parts import Packing
from transact.data.tokenising import write_token_store
from transact.models.stock import load_tokenizer

# More than what is looked at before the work: what follows it is met in the middle of tokenising.
ROWS = [f"row {number} of sound text" for number in range(4000)]
SOUND_JSON = b"".join(json.dumps({"text": row}).encode() + b"\n" for row in ROWS)
SOUND_TEXT = "\n".join(ROWS).encode() + b"\n"
DEEP = b"[" * 100_000 + b"]" * 100_000


def read(path: Path) -> list[str]:
    config = TextConfig(source="files", files=[str(path)])
    check_text(config, "data.train")
    return list(documents(config, "data.train"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", b""),
        ("empty.jsonl", b""),
        ("line_ends.txt", b"\r\r\r"),
        ("nul.txt", b"a\0b"),
        ("nul.jsonl", b'{"text": "a\0b"}\n'),
        ("utf16.txt", "words".encode("utf-16")),
        ("latin.txt", SOUND_TEXT + b"caf\xe9"),
        ("latin.jsonl", SOUND_JSON + b'{"text": "caf\xe9"}\n' + SOUND_JSON),
        ("cut_character.txt", SOUND_TEXT + "☃".encode()[:2]),
        ("nul_later.jsonl", SOUND_JSON + b'{"text": "a\0b"}\n'),
        ("half_surrogate.jsonl", b'{"text": "a\\ud800b"}\n'),
        ("half_surrogate_later.jsonl", SOUND_JSON + b'{"text": "a\\ud800b"}\n'),
        ("list.jsonl", b'["a"]\n'),
        ("list_later.jsonl", SOUND_JSON + b'["a"]\n'),
        ("number_later.jsonl", SOUND_JSON + b"5\n"),
        ("string_later.jsonl", SOUND_JSON + b'"s"\n'),
        ("no_text.jsonl", b'{"body": "words"}\n'),
        ("text_is_a_number.jsonl", b'{"text": 5}\n'),
        ("text_is_a_number_later.jsonl", SOUND_JSON + b'{"text": 5}\n'),
        ("text_is_a_list_later.jsonl", SOUND_JSON + b'{"text": ["a"]}\n'),
        ("cut.jsonl", SOUND_JSON + b'{"text": "wor'),
        ("no_json_later.jsonl", SOUND_JSON + b"words\n" + SOUND_JSON),
        ("text_twice.jsonl", b'{"text": "a", "text": "b"}\n'),
        ("deep.jsonl", b'{"text": "a", "x": ' + DEEP + b"}\n"),
        ("long_number.jsonl", b'{"text": "a", "x": ' + b"9" * 5000 + b"}\n"),
        ("not_lines.json", json.dumps({"text": "a"}, indent=1).encode()),
    ],
)
def test_refused_with_the_name_of_the_file(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data\.train\.[^\n]*{name}[^\n]*$"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("line_ends.txt", b"one\rtwo\r\nthree", ["one\ntwo\nthree"]),
        ("line_ends.jsonl", b'{"text": "one"}\r\n{"text": "two"}\r\n', ["one", "two"]),
        ("old_line_ends.jsonl", b'{"text": "one"}\r{"text": "two"}\r', ["one", "two"]),
        ("byte_order_mark.txt", b"\xef\xbb\xbfwords", ["words"]),
        ("surrogates.jsonl", b'{"text": "\\ud83d\\ude42"}\n', ["🙂"]),
        ("escaped_nul.jsonl", b'{"text": "a\\u0000b"}\n', ["a\0b"]),
        ("empty_rows.jsonl", b'{"text": ""}\n{"text": "a"}\n{"text": null}\n{}\n{"text": "b"}\n', ["a", "b"]),
        ("blank_lines.jsonl", b'{"text": "a"}\n\n\n{"text": "b"}\n', ["a", "b"]),
        (
            "other_columns.jsonl",
            b'{"text": "a", "x": 1}\n{"text": "b", "x": [1]}\n{"text": "c", "y": 1}\n',
            list("abc"),
        ),
        ("null_later.jsonl", SOUND_JSON + b"null\n", ROWS),
    ],
)
def test_read_correctly(name: str, content: bytes, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path) == expected


def test_nothing_but_empty_documents_is_too_little_text(workplace: Workplace, tmp_path: Path) -> None:
    path = tmp_path / "empty_rows.jsonl"
    path.write_bytes(b'{"text": ""}\n' * 1000)
    tokenizer = load_tokenizer(workplace.model)
    with pytest.raises(ValueError, match=r"data\.train has 0 tokens, fewer than one sequence of 16"):
        write_token_store(
            tmp_path / "s", read(path), tokenizer, Packing(sequence_length=16, max_sequences=5), name="data.train"
        )
