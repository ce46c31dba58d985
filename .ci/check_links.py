"""Whether what documents, comments and messages point at is in this repository; exit code 1 and a line for each if not.

python .ci/check_links.py
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
DOCUMENT = re.compile(r"(?<![\w}])[A-Za-z][\w./-]*\.md\b")
MADE_BY_RUNS = {"README.md", "notes.md"}  # the model card of an export; a user's file in examples
CODE = ("transact/*.py", "benchmarks/*.py", "conf/*.yaml", "Makefile", "launch/*", ".ci/run")


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


def broken() -> list[str]:
    found = [
        f"{path.relative_to(REPOSITORY)}: {target} is linked to and not there"
        for path in tracked("*.md")
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    return found + [
        f"{path.relative_to(REPOSITORY)}: {name} is named and not there"
        for path in tracked(*CODE)
        for name in DOCUMENT.findall(path.read_text(encoding="utf-8"))
        if name not in MADE_BY_RUNS and not (REPOSITORY / name).exists() and not (path.parent / name).exists()
    ]


def wrong_layers() -> list[str]:
    """docs/architecture.md draws the layers that the test holds the imports to."""
    tree = ast.parse((REPOSITORY / "tests/unit/test_architecture.py").read_text(encoding="utf-8"))
    (layers,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    drawn = "".join(f"    {' '.join(sorted(rooms - {''}))}\n" for rooms in layers)
    shown = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    return [] if f"\n\n{drawn}\n" in shown else [f"docs/architecture.md: the layers are now\n{drawn}"]


if __name__ == "__main__":
    sys.exit("\n".join(broken() + wrong_layers()) or 0)
