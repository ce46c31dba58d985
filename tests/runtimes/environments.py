"""The environments that serve exports, each by its own pinned packages, and scripts that run in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, environment
from tests.support.optional import CACHE, transformers_4

HERE = Path(__file__).parent
REQUIRED = "TRANSACT_TESTS_NEED_RUNTIMES"  # set where a skip would hide that nothing was tested


def python_of(name: str) -> Path:
    """The interpreter of an environment that `make runtimes` makes; the test is skipped, or fails, without it."""
    folder = CACHE / "runtimes" / name
    if not (folder / "ready").is_file():
        reason = f"{folder} is missing: make runtimes"
        pytest.fail(f"{reason} ({REQUIRED} is set)") if os.environ.get(REQUIRED) else pytest.skip(reason)
    return folder / "bin" / "python"


def version_of(name: str, package: str) -> str:
    """The version of a package that the environment's file in .ci/constraints pins."""
    pins = (REPOSITORY / ".ci" / "constraints" / "runtimes" / f"{name}.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)", pins, flags=re.MULTILINE)
    return str(version)


def ask(script: str, question: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The answers of a script of this folder, which runs in the environment of its name; see worker.py.

    Raises:
        AssertionError: the script fails; with the end of what it says.
    """
    beside: list[Path] = [HERE]
    match script:
        case "in_transformers":
            python = Path(sys.executable)
        case "in_transformers_4":
            python, script = Path(sys.executable), "in_transformers"
            beside = [transformers_4(), HERE]
        case "in_llama_cpp":
            python, beside = Path(sys.executable), [HERE, REPOSITORY]
        case "in_executorch" | "chat_in_executorch":
            python, beside = python_of("executorch"), [HERE, REPOSITORY]
        case _:
            python = python_of(script.partition("in_")[2])
    asked, answered = folder / f"{script}_question.json", folder / f"{script}_answer.json"
    asked.write_text(json.dumps(question))
    done = subprocess.run(
        [str(python), str(HERE / f"{script}.py"), str(asked), str(answered)],
        env=environment() | {"PYTHONPATH": os.pathsep.join(map(str, beside))},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(answered.read_text())
    return found
