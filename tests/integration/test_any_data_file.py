"""Data files over a grammar of damages: each is read to its last document, or refused in one printable line."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transact.config.inputs import TextConfig
from transact.data.text import check_text, documents

FILES = 250
KINDS = ("txt", "jsonl", "parquet")
ROWS = [f"row {number} of sound text, naïve ☃" for number in range(40)]
NAMES = ["plain", "t[1]", "a*b", "two words", "\x1b[31mred", "line\nbreak", "\u202eback", "naïve ☃", "q'uote"]


def json_lines(rows: list[object]) -> bytes:
    return "".join(json.dumps({"text": row, "id": 1}) + "\n" for row in rows).encode()


def parquet(rows: list[object]) -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), written, row_group_size=7)
    return written.getvalue()


def sound(kind: str, size: int) -> bytes:
    rows = (ROWS * size)[: max(1, 40 * size)]
    return {"txt": "\n".join(rows).encode(), "jsonl": json_lines(list(rows)), "parquet": parquet(list(rows))}[kind]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "none": lambda content, chance: content,
    "empty": lambda content, chance: b"",
    "blank": lambda content, chance: b" \n\t\r\n" * chance.randint(1, 99),
    "cut": lambda content, chance: content[: chance.randrange(len(content))],
    "flipped": lambda content, chance: spliced(content, chance, 1, bytes([chance.randrange(256)])),
    "nul": lambda content, chance: spliced(content, chance, 0, b"\0"),
    "latin": lambda content, chance: spliced(content, chance, 0, b"caf\xe9 "),
    "byte_order_mark": lambda content, chance: b"\xef\xbb\xbf" + content,
    "carriage_returns": lambda content, chance: content.replace(b"\n", b"\r\n"),
    "no_last_line_end": lambda content, chance: content.rstrip(b"\n"),
    "utf16": lambda content, chance: "words and more".encode("utf-16"),
    "broken_row": lambda content, chance: at_a_line(content, chance, b'{"text": "wor\n'),
    "no_field": lambda content, chance: at_a_line(content, chance, b'{"body": "words"}\n'),
    "number": lambda content, chance: at_a_line(content, chance, b'{"text": 5}\n'),
    "list": lambda content, chance: at_a_line(content, chance, b'["words"]\n'),
    "surrogate": lambda content, chance: at_a_line(content, chance, b'{"text": "a\\ud800"}\n'),
    "deep": lambda content, chance: at_a_line(content, chance, b"[" * 9999 + b"\n"),
    "long_line": lambda content, chance: at_a_line(content, chance, b'{"text": "' + b"z" * 400_000 + b'"}\n'),
    "numbers": lambda content, chance: parquet([1, 2, 3]),
    "lists": lambda content, chance: parquet([["a"], ["b"]]),
    "nulls": lambda content, chance: parquet([None, "words", None]),
    "no_rows": lambda content, chance: parquet([]),
    "noise": lambda content, chance: chance.randbytes(300),
}


def spliced(content: bytes, chance: random.Random, removed: int, inserted: bytes) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + inserted + content[place + removed :]


def at_a_line(content: bytes, chance: random.Random, line: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(chance.randint(0, len(lines)), line)
    return b"".join(lines)


ENDS = {"read": 0, "refused": 0}


@settings(
    max_examples=FILES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(KINDS),
    damage=st.sampled_from(sorted(DAMAGES)),
    name=st.sampled_from(NAMES),
    size=st.sampled_from([1, 100]),
    seed=st.integers(0, 10**6),
)
def judge(tmp_path: Path, kind: str, damage: str, name: str, size: int, seed: int) -> None:
    content = DAMAGES[damage](sound(kind, size), random.Random(seed))
    path = tmp_path / f"{name}.{kind}"
    path.write_bytes(content)
    config = TextConfig(source="files", files=[str(path)])
    try:
        check_text(config, "data.train")
        found = list(documents(config, "data.train"))
    except ValueError as error:
        refusal = error
    else:
        refusal = None
    finally:
        path.unlink()
    if refusal is not None:
        assert type(refusal) is ValueError
        told = str(refusal)
        assert told.isprintable(), told
        assert told.startswith("data.train.")
        assert repr(str(path)) in told
        assert damage != "none", told
        ENDS["refused"] += 1
        return
    ENDS["read"] += 1
    assert all(document.strip() for document in found)
    "".join(found).encode()  # what no tokenizer takes is refused
    if kind == "txt":
        assert not any("\0" in document for document in found)
    if damage in ("none", "byte_order_mark", "carriage_returns", "no_last_line_end"):
        expected = (ROWS * size)[: 40 * size]
        if kind == "txt":
            assert sum(map(len, found)) == len("\n".join(expected))
        else:
            assert sorted(found) == sorted(expected)


def test_any_data_file(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    judge(tmp_path)
    record_property("ends", str(ENDS))
    assert ENDS["read"] + ENDS["refused"] >= 150
    assert min(ENDS.values()) > 40, ENDS
    print(ENDS)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_damage_after_megabytes_is_told_with_its_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"late.{kind}"
    content = sound(kind, 1000)
    path.write_bytes(content + b"a\0b\n" + content)
    config = TextConfig(source="files", files=[str(path)])
    check_text(config, "data.train")
    line = content.count(b"\n") + 1
    with pytest.raises(ValueError, match=rf"^data\.train\.files: '[^']*late\.{kind}' .* line {line:,}$"):
        list(documents(config, "data.train"))
