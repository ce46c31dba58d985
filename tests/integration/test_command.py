"""The command `transact`, as `pip install` puts it beside the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, environment
from transact import __version__
from transact.__main__ import COMMANDS
from transact.errors import DONE, REFUSED

SCRIPT = Path(sys.executable).with_name("transact")
# What a person's shell does: Hydra's script is evaluated once, and then asked with the line that was typed so far.
ASK = """
eval "$(transact run -sc install=bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=$2
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""


def shell(*command: str) -> subprocess.CompletedProcess[str]:
    variables = environment() | {"PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    ended = shell("transact", command, "--help")
    assert ended.returncode == DONE, ended.stderr
    assert "usage: transact" in ended.stdout or (command == "run" and "python -m transact.run" in ended.stdout)


def test_the_version_and_the_commands_are_said() -> None:
    assert shell("transact", "--version").stdout == f"transact {__version__}\n"
    assert all(f"  {name} " in shell("transact").stdout for name in COMMANDS)


def test_another_word_is_refused() -> None:
    ended = shell("transact", "prune")
    assert ended.returncode == REFUSED
    assert ended.stderr == f"error: 'prune' is no command: it must be one of {', '.join(COMMANDS)}\n"
    assert list(COMMANDS) == ["run", "status", "report", "efficiency", "import", "quantize", "dashboard"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["status"], "the following arguments are required: folder"),
        (["report", "x", "--second=1"], "unrecognized arguments: --second=1"),
        (["efficiency", "x", "--turns", "many"], "argument --turns: invalid int value: 'many'"),
        (["dashboard", "pull"], "argument action: invalid choice: 'pull'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(words: list[str], reason: str) -> None:
    ended = shell("transact", *words)
    assert (ended.returncode, ended.stdout) == (REFUSED, "")
    assert ended.stderr.startswith(f"error: {reason}")
    assert ended.stderr.endswith(f"; see transact {words[0]} --help\n") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words", "answer"),
    [
        ("transact re", 1, "report"),
        ("transact run recover.tok", 2, "recover.token_shares= recover.tokens="),
        ("transact run name=a prune/method=t", 3, "prune/method=taylor"),
        ("transact run +experiment=llama3", 2, "+experiment=llama3_8b_50pct +experiment=llama3_8b_instruct_50pct"),
    ],
)
def test_bash_completes(line: str, words: int, answer: str) -> None:
    ended = shell("bash", "-c", ASK, "bash", line, str(words))
    assert ended.stdout.split() == answer.split(), ended.stderr
