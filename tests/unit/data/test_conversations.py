"""Conversations in rows of files: every published form becomes one, and what is none is refused with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from transact.config.compose import compose_config
from transact.config.inputs import TextConfig
from transact.data.rows import LeftOut
from transact.data.text import check_text, documents, text_identity

TURNS = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}]
SHARED = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "héllo", "weight": None},
    {"from": "gpt", "value": "hi"},
]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "adds"}}]
CALLED = [
    TURNS[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "7"},
    TURNS[1],
]
ROWS = [
    {"messages": TURNS, "tools": None},
    {"messages": SHARED, "tools": None},
    {"messages": CALLED, "tools": TOOLS},
    {"messages": None, "tools": None},
    {"messages": [], "tools": None},
    {"messages": [{"role": "user", "content": " \n"}], "tools": None},
]
EXPECTED = [
    {"messages": TURNS},
    {"messages": [{"role": "system", "content": "be brief"}, *TURNS]},
    {"messages": [CALLED[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, *CALLED[2:]], "tools": TOOLS},
]


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_compressed(path: Path, rows: list[Any]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_parquet(path: Path, rows: list[Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[Any]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "jsonl": write_lines,
    "jsonl.gz": write_compressed,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


def config_of(path: Path, **options: Any) -> TextConfig:
    return TextConfig(source="files", files=[str(path)], **({"messages_field": "messages"} | options))


def read(path: Path, left_out: LeftOut | None = None, **options: Any) -> list[Any]:
    config = config_of(path, **options)
    check_text(config, "data.train")
    return [json.loads(each) for each in documents(config, "data.train", left_out)]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_form_in_every_kind_of_file_is_one(kind: str, tmp_path: Path) -> None:
    """Columns of parquet and arrow have the names of all rows in each, with null."""
    path, left_out = tmp_path / f"rows.{kind}", LeftOut()
    WRITERS[kind](path, ROWS)
    assert read(path, left_out) == EXPECTED
    assert left_out.rows == 3 and "4 of" in (left_out.first or "")


def test_the_same_conversation_is_the_same_document_wherever_it_is_stored(tmp_path: Path) -> None:
    """Held-out conversations are found again by it."""
    texts = set()
    for kind, write in WRITERS.items():
        write(tmp_path / f"rows.{kind}", ROWS[:1])
        texts |= {*documents(config_of(tmp_path / f"rows.{kind}"), "data.train")}
    assert len(texts) == 1


@pytest.mark.parametrize("tools", [json.dumps(TOOLS), TOOLS], ids=["as JSON", "as a list"])
def test_tools_may_be_written_as_json(tools: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"messages": TURNS, "tools": tools}])
    assert read(tmp_path / "rows.jsonl") == [{"messages": TURNS, "tools": TOOLS}]


def test_the_field_may_have_any_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"conversations": SHARED}])
    assert read(tmp_path / "rows.jsonl", messages_field="conversations") == EXPECTED[1:2]


WRONG: dict[str, tuple[Any, str]] = {
    "text": ("hello", "holds a str as 'messages', it must be a list of messages"),
    "list of texts": (["hello"], "holds a str as a message in 'messages', it must be an object"),
    "unknown role": ([{"role": "narrator", "content": "x"}], "role 'narrator' in 'messages', it must be one of system"),
    "unknown speaker": ([{"from": "bing", "value": "x"}], "role 'bing'"),
    "no role": ([{"content": "x"}], "role None"),
    "role is a list": ([{"role": ["user"], "content": "x"}], "role ['user']"),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "holds a list as the content"),
    "no content": ([{"role": "user"}], "holds a NoneType as the content"),
    "calls": ([{"role": "assistant", "content": "", "tool_calls": "f()"}], "'tool_calls' in 'messages' that are not"),
    "half a character": ([{"role": "user", "content": "\ud800"}], "half a character"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_is_no_conversation_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    """The first row before any work starts, a later one when it is read."""
    value, words = WRONG[case]
    path = tmp_path / "rows.jsonl"
    for rows, place in (([{"messages": value}], "line 1"), ([ROWS[0], {"messages": value}], "line 2")):
        write_lines(path, rows)
        if place == "line 2":
            check_text(config_of(path), "data.train")
        with pytest.raises(ValueError, match=r"^data\.train\.files: ") as refused:
            read(path)
        assert words in str(refused.value) and str(refused.value).endswith(place)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_that_are_no_conversations_are_refused_before_any_work(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    for rows, words in (
        ([{"messages": "hello"}], "it must be a list of messages, in row 1"),
        ([{"messages": [{"role": "narrator", "content": "x"}]}], "role 'narrator'"),
        ([{"text": "hello"}], "data.train.messages_field='messages' is not in"),
    ):
        WRITERS[kind](path, rows)
        with pytest.raises(ValueError, match=r"^data\.train\.") as refused:
            check_text(config_of(path), "data.train")
        assert words in str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "txt", "md"])
def test_files_without_nested_fields_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    content = b"messages\nhello\n"
    path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    with pytest.raises(ValueError, match=r"^data\.train\.messages_field='messages' is not allowed: .*cannot hold conv"):
        check_text(config_of(path), "data.train")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss='answers' is not allowed: text has no answers"):
        TextConfig(source="python_stdlib", loss="answers")
    with pytest.raises(ValueError, match=r"messages_field='messages' is not allowed: source \"python_stdlib\" has no"):
        TextConfig(source="python_stdlib", messages_field="messages")


def test_every_setting_of_conversations_makes_another_store_and_text_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, ROWS)
    asked: list[dict[str, Any]] = [{}, {"loss": "answers"}, {"messages_field": "turns"}, {"messages_field": None}]
    found = [text_identity(config_of(path, **each), "data.train") for each in asked]
    assert all(found.count(each) == 1 for each in found)
    assert found[3].keys() == {"source", "order", "text_field", "files"}  # as stores of text always were named


def test_a_tokenizer_that_is_made_has_no_template(tmp_path: Path) -> None:
    pretrain = ["name=x", "mode=pretrain", "model=demo_random", "recover.objective=cross_entropy"]
    local = ["data=local", f"data.train.files=[{tmp_path}/a.jsonl]", f"data.evaluation.files=[{tmp_path}/b.jsonl]"]
    for asked, name in (
        ([*local, "+data.train.messages_field=messages"], r"data\.train\.messages_field='messages'"),
        ([*local, "+data.evaluation.messages_field=messages"], r"data\.evaluation\.messages_field='messages'"),
        (["eval.chat_template=true"], r"eval\.chat_template=true"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is not allowed: mode=pretrain makes a tokenizer"):
            compose_config([*pretrain, *asked])
