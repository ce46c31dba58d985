"""Whether tests use public names alone, and unit tests start no process; exit code 1 and a line for each if not.

python .ci/check_tests.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# What starts processes or serves stands in tests/integration, tests/distributed, tests/e2e or tests/cluster.
NOT_IN_UNIT = {"subprocess", "multiprocessing", "http.server", "tests.support.ranks", "tests.support.warm"}
NOT_IN_UNIT |= {"tests.support.runs", "tests.support.hub", "tests.support.s3", "tests.support.slurm"}
NOT_IN_UNIT |= {f"tests.support.commands.{name}" for name in ("transact", "transact_as_users_do")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def parsed(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        yield path.relative_to(REPOSITORY), ast.parse(path.read_text(encoding="utf-8"))


def private_names(tree: ast.Module) -> set[str]:
    """That a module defines, or sets on its objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private names that a module takes from others, as an import, an attribute, or a dotted text to be patched."""
    own = private_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("transact", "benchmarks")):
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in own
            if not is_own:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("transact."):
            yield from ((node.lineno, part) for part in node.value.split(".") if is_private(part))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def problems() -> Iterator[str]:
    private = {
        name for folder in ("transact", "benchmarks") for _, tree in parsed(folder) for name in private_names(tree)
    }
    for path, tree in parsed("tests"):
        yield from (f"{path}:{line}: the private name {name}" for line, name in uses(tree) if name in private)
        if path.is_relative_to("tests/unit"):
            yield from (f"{path}:{line}: {name} in a unit test" for line, name in imported(tree) if name in NOT_IN_UNIT)


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or 0)
