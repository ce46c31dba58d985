"""How a command ends is said, formatted and done in one module; what an error says is one line, whatever it is."""

from __future__ import annotations

import ast
import builtins
import inspect

import pytest

import transact.errors
from tests.support.commands import REPOSITORY
from transact.errors import (
    FAILED,
    LONGEST_MESSAGE,
    LONGEST_REASON,
    REFUSED,
    REMEDIES,
    Failure,
    RankFailed,
    Refusal,
    Stopped,
    TransactError,
    exit_code,
    one_line,
    remedy,
)

BUILT_IN = {
    name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, BaseException)
}


def errors_in(tree: ast.AST) -> set[str]:
    """Names that hold an error: of handlers, and of parameters that are annotated as one."""
    nodes = list(ast.walk(tree))
    handled = {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    given = {node.arg for node in nodes if isinstance(node, ast.arg) and _named_in(node.annotation) & BUILT_IN}
    return handled | given


def _named_in(tree: ast.AST | None) -> set[str]:
    return set() if tree is None else {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def second_ways(source: str) -> list[str]:
    """What errors.py does for everybody, done once more."""
    tree = ast.parse(source)
    names = errors_in(tree)
    named = {f"type({name}).__name__" for name in names}
    torn = {f"str({name}).{way}" for name in names for way in ("split", "splitlines")}
    return [ast.unparse(node) for node in ast.walk(tree) if _is_second_way(node, named, torn)]


def _is_second_way(node: ast.AST, named: set[str], torn: set[str]) -> bool:
    """named, torn: how a class of an error is written, and how its message is cut."""
    if isinstance(node, ast.Attribute):
        return node.attr in ("_exit", "Timer")
    if isinstance(node, ast.ImportFrom):
        return bool({each.name for each in node.names} & {"_exit", "Timer"})
    if isinstance(node, ast.ClassDef):
        return bool(set(map(ast.unparse, node.bases)) & BUILT_IN)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith("error: ")
    if isinstance(node, ast.FormattedValue):
        return ast.unparse(node.value) in named
    if isinstance(node, ast.BoolOp):
        return any(ast.unparse(each) in named for each in node.values if isinstance(each, ast.Attribute))
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in torn


def test_no_other_module_leaves_formats_an_error_or_begins_a_hierarchy() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "transact").rglob("*.py")}
    found = {path.name: ways for path, source in sources.items() if (ways := second_ways(source))}
    own = found.pop("errors.py")
    assert found == {}
    assert own.count("os._exit") == 1 and "threading.Timer" in own


@pytest.mark.parametrize(
    "source",
    [
        "os._exit(1)",
        "from os import _exit",
        "threading.Timer(3, leave)",
        "class Broken(RuntimeError): pass",
        "print(f'error: {reason}')",
        "try: f()\nexcept OSError as e: say(f'{type(e).__name__}: {e}')",
        "try: f()\nexcept OSError as e: say(str(e).splitlines()[0])",
        "def why(error: Exception) -> str: return ' '.join(str(error).split()) or type(error).__name__",
    ],
)
def test_a_second_way_is_found(source: str) -> None:
    assert second_ways(source)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("prune.rounds=0 is not allowed:\n  it must be 1 or more"), None),
        (FileNotFoundError(2, "No such file or directory", "/a"), "[Errno 2] No such file or directory: '/a'"),
        (ConnectionResetError("by peer"), "ConnectionResetError: by peer"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (ValueError(), "ValueError"),
        (Exception("said by a library in Rust"), "said by a library in Rust"),
        (RankFailed("rank 1 failed: no more"), "rank 1 failed: no more"),
        (Stopped("SIGINT"), "stopped by SIGINT"),
        (Stopped(), "stopped"),
        (
            raised_from(OSError("cannot load it"), KeyError("rope_type")),
            "cannot load it (KeyError: 'rope_type')",
        ),
        (raised_from(RuntimeError("failed: no text"), ValueError("no text")), "RuntimeError: failed: no text"),
        (
            RuntimeError("Socket closed\nException raised from recv at a.cpp:9\nframe #0: c10::f"),
            "RuntimeError: Socket closed",
        ),
        (
            ValueError("it ended:\nTraceback (most recent call last):\n  File 'x', line 1\nKeyError: 3"),
            "it ended:",
        ),
        (ValueError("\x1b[2Jgone\x00 \udc80"), "\\x1b[2Jgone\\x00 \\udc80"),
    ],
)
def test_any_error_is_one_printable_line(error: Exception, said: str | None) -> None:
    line = one_line(error)
    assert line == (said or "prune.rounds=0 is not allowed: it must be 1 or more")
    assert line.isprintable() and one_line(line) == line


def test_a_long_reason_is_cut() -> None:
    error = RuntimeError("a\n" * 10**5)
    assert len(one_line(error)) <= LONGEST_MESSAGE + len(" ...")
    assert len(one_line(error, LONGEST_REASON)) <= LONGEST_REASON + len(" ...")


def test_the_exit_code_follows_from_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    classes = [value for value in vars(transact.errors).values() if inspect.isclass(value)]
    assert {each for each in classes if issubclass(each, BaseException)} == {
        TransactError,
        Refusal,
        Failure,
        RankFailed,
        Stopped,
    }
    assert exit_code(Refusal("no")) == REFUSED and isinstance(Refusal("no"), ValueError)
    for error in (Failure("no"), RankFailed("no"), Stopped("SIGTERM"), KeyError("no"), MemoryError()):
        assert exit_code(error) == FAILED
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # its batch script queues the job again or not
    assert exit_code(Stopped("SIGTERM")) == 128 + 15
    assert exit_code(Stopped("the end of process 3, which had started it")) == exit_code(Failure("no")) == FAILED


def test_a_remedy_is_found_for_a_kind_nobody_listed() -> None:
    assert remedy("memory/weights/recover") != remedy("memory/weights/gram") == REMEDIES["memory/weights"]
    assert remedy("memory/export") == REMEDIES["memory"]
