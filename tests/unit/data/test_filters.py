"""A function of the user decides which documents stay; it runs only where that was allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from transact.config.compose import compose_config
from transact.config.inputs import TextConfig
from transact.data.rows import LeftOut
from transact.data.text import documents, text_identity


def text_of(folder: Path, named: str | None) -> TextConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(20)))
    return TextConfig(source="files", files=[str(file)], filter=named)


def test_documents_that_it_refuses_are_left_out_and_counted(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def even(text):\n    return int(text.split()[1]) % 2 == 0\n")
    left_out = LeftOut()
    found = list(documents(text_of(tmp_path, f"{code}:even"), "data.train", left_out))
    assert found == [each for each in documents(text_of(tmp_path, None), "data.train") if each[-1] in "02468"]
    assert len(found) == left_out.filtered == 10


def test_its_code_may_hold_what_looks_for_its_module(tmp_path: Path) -> None:
    """Dataclasses do, where annotations are words."""
    code = tmp_path / "mine.py"
    made = "@dataclass\nclass Rule:\n    least: int\n\ndef keep(text):\n    return len(text) >= Rule(11).least\n"
    code.write_text(f"from __future__ import annotations\nfrom dataclasses import dataclass\n\n{made}")
    found = list(documents(text_of(tmp_path, f"{code}:keep"), "data.train"))
    assert found == [f"document {number}" for number in range(10, 20)]  # of 11 characters


def test_other_code_is_another_text(tmp_path: Path) -> None:
    code, text = tmp_path / "mine.py", text_of(tmp_path, f"{tmp_path / 'mine.py'}:keep")
    code.write_text("def keep(text): return True\n")
    before = text_identity(text, "data.train")
    code.write_text("def keep(text): return False\n")
    assert text_identity(text, "data.train") != before
    assert "filter" not in text_identity(text_of(tmp_path, None), "data.train")


@pytest.mark.parametrize(
    ("code", "function", "words"),
    [
        (None, "keep", "there is no file"),
        ("def other(text): ...", "keep", "has no function 'keep'"),
        ("import nothing_of_this_name", "keep", "No module named"),
        ("def keep(text): return text.missing", "keep", "fails (AttributeError: "),
    ],
    ids=["no_file", "no_function", "no_module", "fails"],
)
def test_what_cannot_run_is_one_line(tmp_path: Path, code: str | None, function: str, words: str) -> None:
    file = tmp_path / "mine.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(ValueError, match=r"^data\.train\.filter=") as caught:
        list(documents(text_of(tmp_path, f"{file}:{function}"), "data.train"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_it_runs_only_where_that_is_allowed() -> None:
    overrides = ["name=x", "data=python_stdlib", "+data.train.filter=mine.py:keep"]
    with pytest.raises(ValueError, match=r"allow that with data\.trust_code=true"):
        compose_config(overrides)
    assert compose_config([*overrides, "data.trust_code=true"]).data.train.filter == "mine.py:keep"
