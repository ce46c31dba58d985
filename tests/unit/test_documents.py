"""What documents, comments and messages point at is in this repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.commands import REPOSITORY

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
DOCUMENT = re.compile(r"(?<![\w}])[A-Za-z][\w./-]*\.md\b")
MADE_BY_RUNS = {"README.md", "notes.md"}  # the model card of an export; a user's file in examples


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(REPOSITORY)}: {target}"
        for path in tracked("*.md")
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert broken == []


def test_code_names_documents_that_exist() -> None:
    """A reader of a comment or a message can open what it names."""
    broken = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in tracked("transact/*.py", "benchmarks/*.py", "conf/*.yaml", "Makefile", "launch/*", ".ci/run")
        for name in DOCUMENT.findall(path.read_text(encoding="utf-8"))
        if name not in MADE_BY_RUNS and not (REPOSITORY / name).exists() and not (path.parent / name).exists()
    ]
    assert broken == []
