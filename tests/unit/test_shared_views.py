"""Ranks on several machines may see different states of a shared folder: none decides by what it sees alone."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.commands import REPOSITORY

QUESTIONS = {"is_dir", "is_file", "exists", "glob", "rglob", "iterdir"}
# Function -> why the answer of one rank does no harm.
ALLOWED = {
    "chain.py:slice_round": "rank 0 alone",
    "sharing.py:share": "rank 0 alone",
    "shapes.py:_rows": "rank 0 alone",
    "sharing.py:remove_shared_grams": "rank 0 alone",
    "sharing.py:_all_sliced": "rank 0 alone",
    "sharing.py:_holds_grams_alone": "rank 0 alone",
    "job.py:look": "waits for a folder; a rank that does not see it ends all of them",
    "texts.py:_check_same_texts": "rank 0 alone",
    "token_stores.py:_is_old": "rank 0 alone",
    "token_stores.py:_sound": "rank 0 alone",
    "token_stores.py:_damage": "rank 0 alone",
    "token_stores.py:remove_leftovers": "rank 0 alone",
    "tasks.py:check_evaluation": "before the ranks meet; what one refuses all refuse",
    "tasks.py:_states": "rank 0 alone",
    "sharing.py:_code_digest": "of this package",
    "sharing.py:_foreign": "rank 0 alone",
    "text_checks.py:check_texts": "before the ranks meet; what one refuses all refuse",
    "overlap.py:_share": "rank 0 alone",
}


def questions(path: Path) -> set[str]:
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            inner = [each for each in ast.walk(function) if isinstance(each, ast.FunctionDef) and each is not function]
            skipped = {node for each in inner for node in ast.walk(each)}
            asked = [node for node in ast.walk(function) if isinstance(node, ast.Attribute) and node not in skipped]
            found |= {f"{path.name}:{function.name}" for node in asked if node.attr in QUESTIONS}
    return found


def test_no_stage_asks_the_file_system_on_each_rank() -> None:
    package = REPOSITORY / "transact"
    asked = {each for path in (package / "stages").glob("*.py") for each in questions(path)}
    assert not asked - ALLOWED.keys(), "let rank 0 ask and broadcast, or say here why it does no harm"
