"""What must start at once imports no library that takes seconds; each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import REPOSITORY, environment

HEAVY = {"torch", "transformers", "deepspeed", "datasets", "wandb", "submitit"}
STATEMENTS = {
    "import transact, transact.run": HEAVY,
    "import sys; sys.argv = ['transact', '--help']; from transact.run import main; main()": HEAVY | {"numpy"},
    "import transact.models.llama": {"torch", "transformers"},
    "import transact.tracking.tracker, transact.tracking.live, transact.tracking.result_table": {
        "wandb",
        "rich",
        "torch",
    },
    "import transact.evaluation.efficiency.command": {"torch"},
    "import transact.launch.status": {"torch"},
}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_heavy_libraries_stay_out(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint({STATEMENTS[statement]} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "set()"
