"""Conversations in the rows of chat data: one form for all that are published, kept as a line of JSON.

A document is text wherever documents are read, hashed and compared. The text of a conversation is the JSON that is
made here; only the tokenizer's chat template (chat_template.py) makes a prompt of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transact.data.rows import NoText, check_characters

TOOLS_FIELD = "tools"  # of a row: what the assistant may call
ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # the names of roles under "from"


def conversation_of(row: Mapping[str, Any], messages_field: str) -> str | None:
    """Return the conversation of a row as JSON, {"messages": [...]} and "tools" where there are some.

    What is null is left out, as columns of parquet and arrow have every name in every message.

    Returns:
        None where the row has no messages, or none with words in it.

    Raises:
        NoText: it is not a list of messages, or a role is unknown.
    """
    given = row.get(messages_field)
    if given is None:
        return None
    if not isinstance(given, list):
        raise NoText(f"holds a {type(given).__name__} as {messages_field!r}, it must be a list of messages")
    messages = [_message(each, messages_field) for each in given]
    if not any(each.get("tool_calls") or str(each["content"]).strip() for each in messages):
        return None
    tools = _tools(row.get(TOOLS_FIELD))
    whole = {"messages": messages} | ({TOOLS_FIELD: tools} if tools else {})
    try:
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError):  # columns of parquet may hold times, or bytes
        raise NoText(f"holds something in {messages_field!r} that is not JSON") from None
    check_characters(text, messages_field)
    return text


def _message(given: Any, field: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise NoText(f"holds a {type(given).__name__} as a message in {field!r}, it must be an object")
    message = _without_nulls(given)
    if "role" not in message and "from" in message:
        named = message["from"]
        message = {"role": SPEAKERS.get(named, named) if isinstance(named, str) else named}
        message |= {"content": given["value"]} if given.get("value") is not None else {}
    role = message.get("role")
    if role not in ROLES:
        allowed = f"one of {', '.join((*ROLES, *SPEAKERS))}"
        raise NoText(f"holds a message of role {role!r} in {field!r}, it must be {allowed}")
    calls = message.pop("tool_calls", None) or []
    if not isinstance(calls, list) or not all(isinstance(each, dict) for each in calls):
        raise NoText(f"holds 'tool_calls' in {field!r} that are not a list of objects")
    content = message.get("content", "" if calls else None)
    if not isinstance(content, str):
        raise NoText(f"holds a {type(content).__name__} as the content of a message in {field!r}, it must be text")
    return message | {"content": content} | ({"tool_calls": calls} if calls else {})


def _tools(given: Any) -> list[Any]:
    """Return the tools of a row, a list of objects, or one written as JSON."""
    tools = given or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or []
        except (ValueError, RecursionError):
            tools = None
    if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
        raise NoText(f"holds {TOOLS_FIELD!r} that are not a list of objects")
    return [_without_nulls(each) for each in tools]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
